"""Whether an agent's key is the right one: the user's pins, by the policy that the user chose."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import fingerprint, parse_public

from ._known import KnownAgents, UntrustedAgent
from ._names import pin_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["KNOWN_AGENTS_FILE", "key_checker"]

KNOWN_AGENTS_FILE = "known_agents"


def key_checker(home: Path, host: str, port: int, policy: str, pinned: str | None) -> Callable[[bytes], None]:
    """Return a function that accepts the key of the agent at *host* and *port*, or raises `UntrustedAgent`.

    Args:
        home: the directory of `known_agents`.
        host: with *port*, what the pin is kept under.
        port: see *host*.
        policy: `strict` or `accept-new`.
        pinned: `agent_public_key` of the host's data: the user's own pin, which beats the file.

    Raises:
        UntrustedAgent: *pinned* is no key line.
    """
    if pinned is None:
        known = _known_agents(home / KNOWN_AGENTS_FILE)
        return lambda key: _ignore(known.check(pin_name(host, port), key, policy))
    try:
        wanted = parse_public(pinned.strip()).key
    except KeyFormatError as error:
        raise UntrustedAgent(f"agent_public_key of {host} is no key line: {error}") from None

    def check(key: bytes) -> None:
        if key != wanted:
            raise UntrustedAgent(
                f"the agent at {pin_name(host, port)} shows key {fingerprint(key)}, but agent_public_key of this host"
                f" is {fingerprint(wanted)}: somebody else answers in its place, or agent_public_key has to be changed"
            )

    return check


@cache
def _known_agents(path: Path) -> KnownAgents:
    """Share one object per file: two hundred hosts then read it once."""
    return KnownAgents(path)


def _ignore(_: object) -> None:
    """Any pin that does not raise is a good one."""
