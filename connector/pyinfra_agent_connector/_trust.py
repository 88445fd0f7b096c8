"""Whether an agent's key is the right one: the user's pins, then certificates, then the policy that the user chose.

    what is known of the name         strict     accept-new   ca         found by discovery, no policy set
    its key is pinned                 yes        yes          yes        yes
    another key is pinned             no         no           no         no           also if it is certified
    a good certificate                yes        yes          yes        yes          for the name that was asked for
    a certificate that does not count no         no           no         no           of a trusted authority
    nothing                           no         pinned now   no         no

`agent_public_key` in host data is a pin that stands in no file. A revoked key is refused whoever knows it. What an
agent announces by multicast DNS or in a DNS zone is asked nothing here.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.certificates import CertificateRefused
from pyinfra_agent_protocol.keys import check_public, fingerprint, format_public, parse_public
from pyinfra_agent_protocol.trust_lines import meaningful_lines

from ._authorities import authorities_of
from ._known import KnownAgents, PinResult, UntrustedAgent
from ._names import pin_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["KNOWN_AGENTS_FILE", "AgentTrust"]

KNOWN_AGENTS_FILE: Final = "known_agents"

_logger: Final = logging.getLogger("pyinfra")


class AgentTrust:
    """Decides for one agent.

    Args:
        home: the directory of `known_agents`, `authorities` and `revoked`.
        host: with *port*, what the pin is kept under.
        port: see *host*.
        policy: as `KnownAgents.check`.
        pinned: `agent_public_key` of the host's data: the user's own pin, which beats the file. While the agent's key
            is rotated it may hold two lines.
        called: one of these must be in the agent's certificate; *host* alone by default.

    Raises:
        UntrustedAgent: *pinned* is no key line.
    """

    def __init__(
        self, home: Path, host: str, port: int, policy: str, pinned: str | None, *, called: Iterable[str] = ()
    ) -> None:
        self._name = pin_name(host, port)
        self._policy = policy
        self._called = tuple(called) or (host,)
        self._known = _known_agents(home / KNOWN_AGENTS_FILE)
        self._authorities = authorities_of(home)
        self._wanted = None if pinned is None else _parse_pinned(pinned, host)

    def check(self, key: bytes, certificate: bytes) -> None:
        """Accept the agent that has proved *key* and shows *certificate*, which is b"" if it has none.

        Raises:
            UntrustedAgent: it is not to be trusted; the text says what to do.
        """
        name = self._name
        self._authorities.require_not_revoked(name, key)
        if self._wanted is not None:
            if key not in self._wanted:
                raise UntrustedAgent(
                    f"the agent at {name} shows key {fingerprint(key)}, but agent_public_key of this host is"
                    f" {' or '.join(map(fingerprint, self._wanted))}: somebody else answers in its place, or"
                    " agent_public_key has to be changed"
                )
            return
        # A pin beats an authority: the user has compared that one key.
        is_pinned = self._known.lookup(name) is not None
        if not is_pinned and self._is_certified(key, certificate):
            return
        what = "shows a certificate of an authority that is not" if certificate else "shows no certificate of those"
        result = self._known.check(name, key, self._policy, uncertified=f"{what} in {self._authorities.path}")
        if result is PinResult.ROTATED:
            _logger.info(f"the key of {name} was rotated to {fingerprint(key)}, as its old key had announced")

    def learn(self, key: bytes, next_key: bytes) -> None:
        """Note which key the agent that has proved *key* will have after its rotation; b"" if it plans none."""
        try:
            if next_key:
                check_public(next_key)
        except KeyFormatError:
            return  # whatever it is, it is no key
        if self._wanted is None:
            self._known.learn_next(self._name, key, next_key)
        elif next_key and next_key not in self._wanted:
            _logger.warning(
                f"the agent at {self._name} will change its key: add a line to agent_public_key of this host, which may"
                f" hold two: {format_public(next_key)}"
            )

    def _is_certified(self, key: bytes, certificate: bytes) -> bool:
        try:
            return self._authorities.certified(key, certificate, self._called) is not None
        except CertificateRefused as error:
            raise UntrustedAgent(
                f"{self._name} ({fingerprint(key)}) is refused: {error}; if it is the right one, have its key signed"
                " anew, or pin it with pyinfra-agent trust add"
            ) from None


def _parse_pinned(text: str, host: str) -> tuple[bytes, ...]:
    try:
        lines = [line for _, line in meaningful_lines(text)]
        return tuple(parse_public(line).key for line in lines or [""])
    except KeyFormatError as error:
        raise UntrustedAgent(f"agent_public_key of {host} is no key line: {error}") from None


@cache
def _known_agents(path: Path) -> KnownAgents:
    """Share one object per file: two hundred hosts then read it once."""
    return KnownAgents(path)
