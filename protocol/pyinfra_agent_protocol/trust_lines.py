r"""The lines of trust files that agents and controllers have in common.

    [names="PATTERN,..."] [groups="GROUP,..."] pyinfra-agent-authority BASE64 comment     whose certificates count
    0123456789abcdef comment                                                              a serial that was revoked
    pyinfra-agent-key BASE64 comment                                                      a key that was revoked

Options stand in front of a key as in OpenSSH's authorized_keys: `name` or `name="value"`, separated by spaces or
commas; within quotes a quote is written `\"`, and a value without spaces, commas and quotes needs none. Empty lines
and lines that start with `#` mean nothing.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ._errors import KeyFormatError
from .certificates import Authority, Revocations, format_authority, parse_authority
from .keys import parse_public

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "format_authority_line",
    "meaningful_lines",
    "parse_authority_line",
    "parse_revocation",
    "parse_revocations",
    "split_options",
    "split_values",
]

_OPTION: Final = re.compile(r'([a-z][a-z-]*)(?:=(?:"((?:[^"\\]|\\.)*)"|([^\s,"\\]+)))?(?=[\s,]|$)')
_SEPARATOR: Final = re.compile(r"[\s,]+")
_ESCAPED: Final = re.compile(r"\\(.)")
_KEY_WORD: Final = "pyinfra-agent-"
_KEY_FORMS: Final = "that is pyinfra-agent-key or pyinfra-agent-authority, base64, and a comment"
_SERIAL: Final = re.compile(r"[0-9a-f]{16}")
_MAX_LINE_CHARACTERS: Final = 8192


def split_options(line: str) -> tuple[dict[str, str | None], str]:
    """Return the options in front of a key line, and that line; an option without a value has None.

    Raises:
        KeyFormatError: an option is none, stands twice or is not ended, or no key line follows.
    """
    if len(line) > _MAX_LINE_CHARACTERS:
        raise KeyFormatError(f"a line has at most {_MAX_LINE_CHARACTERS} characters, not {len(line)}")
    options: dict[str, str | None] = {}
    rest = line.strip()
    while rest and not rest.startswith(_KEY_WORD):
        found = _OPTION.match(rest)
        if found is None:
            raise KeyFormatError(f'this is neither an option, NAME or NAME="VALUE", nor a key: {_KEY_FORMS}')
        name, value = found[1], found[3] if found[2] is None else found[2]
        if name in options:
            raise KeyFormatError(f"the option {name} stands twice")
        options[name] = None if value is None else _ESCAPED.sub(r"\1", value)
        rest = _SEPARATOR.sub("", rest[found.end() :], count=1)
    if not rest:
        raise KeyFormatError(f"there is no key here: {_KEY_FORMS}")
    return options, rest


def split_values(name: str, value: str | None) -> tuple[str, ...]:
    """Return the values of an option that takes a list, such as `names="a,b"`.

    Raises:
        KeyFormatError: there is none.
    """
    values = tuple(part.strip() for part in (value or "").split(","))
    if not all(values) or not all(part.isprintable() for part in values):
        raise KeyFormatError(f'the option {name} takes a list: {name}="A,B"')
    return values


def parse_authority_line(line: str) -> Authority:
    """Return the authority of a line, with the names and groups that its options allow it.

    Raises:
        KeyFormatError: it is not in the form above.
    """
    options, rest = split_options(line)
    unknown = sorted(options.keys() - {"names", "groups"})
    if unknown:
        raise KeyFormatError(f"there is no option {unknown[0]} for an authority: it takes names and groups")
    authority = parse_authority(rest)
    # Lower case: names are compared so (RFC 1034 section 3.1).
    limits = {name: split_values(name, value) for name, value in options.items()}
    names = tuple(pattern.lower() for pattern in limits["names"]) if "names" in limits else None
    return replace(authority, names=names, groups=limits.get("groups"))


def format_authority_line(authority: Authority) -> str:
    """Return the line of *authority*, which `parse_authority_line` reads; raises `KeyFormatError`."""
    options = ""
    for name, values in (("names", authority.names), ("groups", authority.groups)):
        if values is not None:
            text = ",".join(split_values(name, ",".join(values)))
            escaped = text.replace("\\", "\\\\").replace('"', '\\"')
            options += f'{name}="{escaped}" '
    return options + format_authority(authority.public, authority.comment)


def parse_revocation(line: str) -> int | bytes:
    """Return what a line of a revocation list takes back: a serial, or a key of 32 bytes.

    Raises:
        KeyFormatError: it is neither.
    """
    first = line.split(None, 1)[0] if line.strip() else ""
    if _SERIAL.fullmatch(first):
        return int(first, 16)
    if first.startswith(_KEY_WORD):
        return parse_public(line).key
    raise KeyFormatError("a revocation is a serial of 16 hexadecimal digits, or a key line")


def parse_revocations(content: str) -> Revocations:
    """Return what a revocation list takes back.

    Raises:
        KeyFormatError: a line cannot be read. It may be the one that matters, so nothing is returned for the rest.
    """
    serials: list[int] = []
    keys: list[bytes] = []
    for number, line in meaningful_lines(content):
        try:
            revoked = parse_revocation(line)
        except KeyFormatError as error:
            raise KeyFormatError(f"line {number}: {error}") from None
        if isinstance(revoked, int):
            serials.append(revoked)
        else:
            keys.append(revoked)
    return Revocations(serials, keys)


def meaningful_lines(content: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that are neither empty nor comments, stripped, with their numbers from 1."""
    # Not splitlines(), which also breaks where no editor does.
    for number, line in enumerate(content.split("\n"), start=1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped
