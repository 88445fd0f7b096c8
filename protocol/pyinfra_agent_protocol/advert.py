"""What an agent says about itself in DNS-SD (RFC 6763): the strings of its TXT record.

    v=1  fp=b3hfx-5elwj-gnpw4-kpjgh-tieru  groups=web,db  os=Debian GNU/Linux 12  arch=x86_64  sw=0.1.0

Anybody on a link can announce anything, so an advert is never believed: it gives an address to try, words to show and
groups to sort hosts by. The key that the handshake proves decides who an agent is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ._constants_link import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MAX_ADVERT_BYTES", "SERVICE", "Advert", "BadAdvert", "is_group_name", "parse_advert"]

#: The service's name, without its domain (RFC 6763 section 7).
SERVICE: Final = "_pyinfra-agent._tcp"
#: Of an advert: with the other records of the answer it then fits one packet of 1,500 bytes.
MAX_ADVERT_BYTES: Final = 400

MAX_GROUPS: Final = 32
MAX_WORD_CHARACTERS: Final = 64

_MAX_STRINGS: Final = 64
_MAX_STRING_BYTES: Final = 255  # RFC 1035 section 3.3: a length of one byte
_VERSION: Final = re.compile(r"[1-9][0-9]{0,2}")
_FINGERPRINT: Final = re.compile(r"[a-z2-7]{5}(?:-[a-z2-7]{5}){4}")  # what keys.fingerprint() returns
_GROUP: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
#: Every host is in pyinfra's group `all`, whose data is the inventory's own.
_NOT_GROUPS: Final = frozenset({"all"})


class BadAdvert(ValueError):
    """A TXT record is no advert of an agent, or an advert does not fit; the text says why."""


@dataclass(frozen=True, slots=True)
class Advert:
    """One agent in its own words, all of which may be wrong.

    Attributes:
        fingerprint: of the key that it says it has, as `keys.fingerprint` writes it.
        groups: that it says it belongs to, without repetition.
        os: of its operating system; "" if it does not say.
        arch: of its processor; "" if it does not say.
        software: version of the agent; "" if it does not say.
        version: of the protocol that it speaks.
    """

    fingerprint: str
    groups: tuple[str, ...] = ()
    os: str = ""
    arch: str = ""
    software: str = ""
    version: int = VERSION

    def strings(self) -> tuple[bytes, ...]:
        """Return the strings of the TXT record, in the order of RFC 6763 section 6.7: the version comes first.

        Raises:
            BadAdvert: a value is not one that `parse_advert` would take, or all of it is too long.
        """
        if not _FINGERPRINT.fullmatch(self.fingerprint):
            raise BadAdvert("the fingerprint is none")
        if len(self.groups) > MAX_GROUPS:
            raise BadAdvert(f"an agent announces {MAX_GROUPS} groups at most, and these are {len(self.groups)}")
        for group in self.groups:
            if not is_group_name(group):
                raise BadAdvert(f"{group!r} cannot be announced as a group: use letters, digits and . _ -")
        values = {
            "v": str(self.version),
            "fp": self.fingerprint,
            "groups": ",".join(self.groups),
            "os": self.os,
            "arch": self.arch,
            "sw": self.software,
        }
        for key in ("os", "arch", "sw"):
            if values[key] != _word(values[key]):
                raise BadAdvert(f"{key} is not a printable text of at most {MAX_WORD_CHARACTERS} characters")
        strings = tuple(f"{key}={value}".encode() for key, value in values.items() if value)
        if max(map(len, strings)) > _MAX_STRING_BYTES or sum(len(string) + 1 for string in strings) > MAX_ADVERT_BYTES:
            raise BadAdvert(
                f"the advert is longer than {MAX_ADVERT_BYTES} bytes, or its groups than {_MAX_STRING_BYTES}:"
                " announce fewer groups"
            )
        return strings


def parse_advert(strings: Iterable[bytes]) -> Advert:
    """Return what the *strings* of a TXT record say. Unknown keys are ignored, and so are values out of bounds.

    Raises:
        BadAdvert: there is no version or no fingerprint in them, or they are far too many.
    """
    values: dict[str, str] = {}
    for number, string in enumerate(strings):
        if number >= _MAX_STRINGS:
            raise BadAdvert("the advert has too many strings")
        key, equals, value = string.partition(b"=")
        # RFC 6763 section 6.4: keys are ASCII of any case, and of equal ones the first counts.
        if equals:
            values.setdefault(key.decode("ascii", "replace").lower(), value.decode("utf-8", "replace"))
    version = values.get("v", "")
    if not _VERSION.fullmatch(version):
        raise BadAdvert("the advert does not say which version of the protocol the agent speaks")
    if not _FINGERPRINT.fullmatch(values.get("fp", "")):
        raise BadAdvert("the advert holds no fingerprint")
    return Advert(
        fingerprint=values["fp"],
        groups=_groups(values.get("groups", "")),
        os=_word(values.get("os", "")),
        arch=_word(values.get("arch", "")),
        software=_word(values.get("sw", "")),
        version=int(version),
    )


def is_group_name(text: str) -> bool:
    """Return whether an advert may carry *text* as a group."""
    return bool(_GROUP.fullmatch(text)) and text not in _NOT_GROUPS


def _groups(text: str) -> tuple[str, ...]:
    names = dict.fromkeys(name for name in text.split(",") if is_group_name(name))
    return tuple(names)[:MAX_GROUPS]


def _word(text: str) -> str:
    # isprintable refuses what a terminal would obey; U+FFFD stands where bytes were not UTF-8.
    return text if len(text) <= MAX_WORD_CHARACTERS and text.isprintable() and "\ufffd" not in text else ""
