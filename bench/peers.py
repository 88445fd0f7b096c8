"""Who is compared: the peers, the servers they need, and why one of them cannot take part."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agentd import running_agent
from lab import Lab, PeerUnavailableError, Place
from sshd import Sshd, running_sshd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import ExitStack

REFERENCE: Final = "@ssh"
EVERY_FIGURE: Final = frozenset({"connect", "command", "puts", "copy", "stream", "round-trips"})


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to reach the target. `server` is the process id of its listener, None where there is no such thing."""

    label: str
    driver: str
    name: str
    settings: Mapping[str, str | int] = field(default_factory=dict)
    server: int | None = None
    figures: frozenset[str] = EVERY_FIGURE

    def to_json(self) -> str:
        """What `worker.py` takes as its argument."""
        return json.dumps({"driver": self.driver, "name": self.name, "settings": dict(self.settings)})


class Servers:
    """The servers at one place, each started when a peer first needs it and ended with *stack*."""

    def __init__(self, stack: ExitStack, lab: Lab, place: Place) -> None:
        self._stack = stack
        self._lab = lab
        self._place = place
        self._sshd: Sshd | PeerUnavailableError | None = None

    def _ssh_server(self) -> Sshd:
        if self._sshd is None:
            try:
                self._sshd = self._stack.enter_context(running_sshd(self._lab, self._place))
            except PeerUnavailableError as error:
                self._sshd = error
        if isinstance(self._sshd, PeerUnavailableError):
            raise self._sshd
        return self._sshd

    def ssh(self) -> Peer:
        """The SSH connector of pyinfra itself: the reference."""
        sshd = self._ssh_server()
        settings: dict[str, str | int] = {
            "ssh_port": sshd.port,
            "ssh_user": "root",
            "ssh_key": str(sshd.client_key),
            "ssh_known_hosts_file": str(sshd.known_hosts),
            "ssh_strict_host_key_checking": "yes",
        }
        return Peer(REFERENCE, "pyinfra", f"@ssh/{sshd.address}", settings, sshd.pid)

    def agent(self) -> Peer:
        """This project."""
        agent = self._stack.enter_context(running_agent(self._lab, self._place))
        settings: dict[str, str | int] = {"agent_home": str(agent.controller_home)}
        return Peer("@agent", "pyinfra", f"@agent/{agent.address}:{agent.port}", settings, agent.pid)

    def local(self) -> Peer:
        """The connector of pyinfra that needs no network."""
        return Peer("@local", "pyinfra", "@local", figures=EVERY_FIGURE - {"round-trips"})

    def scp(self) -> Peer:
        """OpenSSH's own client."""
        if shutil.which("scp") is None:
            raise PeerUnavailableError("scp is not installed (on Debian: apt-get install openssh-client)")
        sshd = self._ssh_server()
        settings: dict[str, str | int] = {
            "port": sshd.port,
            "key": str(sshd.client_key),
            "known_hosts": str(sshd.known_hosts),
            "control_directory": str(self._lab.root),
        }
        # No server: the sftp-server of a copy has gone with its memory before it could be read.
        return Peer("scp", "scp", f"root@{sshd.address}", settings, figures=frozenset({"copy"}))

    def mitogen(self) -> Peer:
        """Mitogen, where it is installed."""
        if importlib.util.find_spec("mitogen") is None:
            raise PeerUnavailableError("mitogen cannot be imported (optional: pip install mitogen)")
        sshd = self._ssh_server()
        settings: dict[str, str | int] = {
            "port": sshd.port,
            "key": str(sshd.client_key),
            "python": sys.executable,
        }
        return Peer("mitogen", "mitogen", sshd.address, settings, sshd.pid, frozenset({"connect", "command"}))


PEERS: Final[Mapping[str, Callable[[Servers], Peer]]] = {
    "ssh": Servers.ssh,
    "agent": Servers.agent,
    "local": Servers.local,
    "scp": Servers.scp,
    "mitogen": Servers.mitogen,
}
DEFAULT_PEERS: Final = ("ssh", "agent", "scp", "mitogen")


def open_peers(
    stack: ExitStack, lab: Lab, place: Place, wanted: Sequence[str]
) -> tuple[list[Peer], dict[str, PeerUnavailableError]]:
    """Start what the wanted peers need; those that can take part, and what keeps the others from it."""
    servers = Servers(stack, lab, place)
    peers: list[Peer] = []
    missing: dict[str, PeerUnavailableError] = {}
    for name in wanted:
        try:
            peers.append(PEERS[name](servers))
        except PeerUnavailableError as error:
            missing[name] = error
    return peers, missing
