"""How a file reaches a path as pyinfra's arguments want it: by the agent itself, or through a process of another user.

As another user the agent opens nothing.  It starts pyinfra's own wrapping (sudo, su, doas, dzdo) around
a `cat`, which gets the verified bytes as its standard input or prints them.  Login-shell flags are
dropped: a profile has nothing to do with a file's bytes.
"""

from __future__ import annotations

import posixpath
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pyinfra.api import QuoteString, StringCommand

from ._argv import build_invocation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._argv import Wrap

__all__ = ["Route", "read_route", "write_route"]

_LOGIN_FLAGS: Final = ("_use_sudo_login", "_use_su_login")
#: Arguments that make a command, and so a transfer, run as somebody else.
_PRIVILEGE: Final = ("_sudo", "_su_user", "_doas", "_dzdo")


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach one file: its path, and the command to go through, if any.

    Attributes:
        nonce: what the reading command prints in front of the content.
    """

    path: str
    argv: list[str] | None = None
    env: Mapping[str, str] | None = None
    nonce: bytes = b""


def write_route(wrap: Wrap, path: str, arguments: Mapping[str, Any], agent_user: str) -> Route:
    """Return how to write *path* with pyinfra's connector *arguments*."""
    if wanted_user(arguments) in (None, agent_user):
        return Route(_absolute(path, arguments))
    if arguments.get("_su_user") and arguments.get("_su_password"):
        # su reads the password from its standard input, so the content comes on another descriptor.
        command = StringCommand(*_require_file(path, device=True), "cat", "<&3", ">", QuoteString(path))
        invocation = build_invocation(wrap, command, _without_login(arguments))
        *shell, raw = invocation.argv
        return Route(path, [*shell, f"exec 3<&0; {raw}"], invocation.env)
    command = StringCommand(*_require_file(path, device=True), "cat", ">", QuoteString(path))
    invocation = build_invocation(wrap, command, _without_login(arguments))
    return Route(path, invocation.argv, invocation.env)


def read_route(wrap: Wrap, path: str, arguments: Mapping[str, Any], agent_user: str) -> Route:
    """Return how to read *path* with pyinfra's connector *arguments*."""
    if wanted_user(arguments) in (None, agent_user):
        return Route(_absolute(path, arguments))
    nonce = secrets.token_hex(16)
    # `cat <` and not `cat NAME`: no name is an option then, and none is "-".
    command = StringCommand(*_require_file(path), "printf", "%s", nonce, "&&", "cat", "<", QuoteString(path))
    invocation = build_invocation(wrap, command, _without_login(arguments))
    return Route(path, invocation.argv, invocation.env, nonce.encode())


def _require_file(path: str, *, device: bool = False) -> tuple[object, ...]:
    """Return the words that let a shell go on for a regular file and for what is not there, and refuse the rest.

    `cat` would wait for ever at a FIFO that nobody else has open. With *device*, /dev/null is written.
    """
    kinds = [word for kind in ("-f", "-c")[: 1 + device] for word in ("test", kind, QuoteString(path), "||")]
    refusal = "it is a directory, a FIFO, a socket or a device; only files are transferred"
    return (*kinds, "test !", "-e", QuoteString(path), "|| !", "echo", QuoteString(refusal), ">&2", "&&")


def wanted_user(arguments: Mapping[str, Any]) -> str | None:
    """Return the user that pyinfra's *arguments* lead to, or None if they name nobody."""
    if not any(arguments.get(name) for name in _PRIVILEGE):
        return None
    # pyinfra nests them in this order: doas, dzdo, sudo, and su innermost.
    if arguments.get("_su_user"):
        return str(arguments["_su_user"])
    for flag, user in (("_sudo", "_sudo_user"), ("_dzdo", "_dzdo_user"), ("_doas", "_doas_user")):
        if arguments.get(flag):
            return str(arguments.get(user) or "root")
    return None


def _without_login(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in _LOGIN_FLAGS}


def _absolute(path: str, arguments: Mapping[str, Any]) -> str:
    directory = arguments.get("_chdir")
    return posixpath.join(directory, path) if directory else path
