"""What an agent is told at its start; nothing reads it again later."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyinfra_agent_protocol import CHANNELS_MAX

from ._drain import Drain
from ._environment import login_environment
from ._log import LogFormat
from ._upload import SyncPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Cgroups", "DnsZone", "OnLost", "Settings"]


class OnLost(enum.Enum):
    """What becomes of the commands of a controller that has vanished."""

    KEEP = "keep"
    """They run on; their results wait for it, as long as its session does."""
    KILL = "kill"
    """They are ended when it has been away for a while."""


class Cgroups(enum.Enum):
    """Whether each command gets a cgroup of its own."""

    AUTO = "auto"
    """Where the agent was given a cgroup to arrange."""
    OFF = "off"
    """Never."""


@dataclass(frozen=True, slots=True)
class DnsZone:
    """Where an agent registers itself beyond its links.

    Attributes:
        zone: domain name, without the final dot.
        server: of the zone's primary: name or address, and port.
        key_file: with the TSIG key, as tsig-keygen(8) writes it.
    """

    zone: str
    server: tuple[str, int]
    key_file: Path

    @property
    def server_text(self) -> str:
        """The server as people write it."""
        host, port = self.server
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that may differ between two agents.

    Attributes:
        listen: addresses to listen on: host (None: every one) and port.
        announce: tell the directly attached links that this agent is there.
        announce_interfaces: the only ones of which this is told, and whose addresses are; none are all.
        groups: that it announces and registers itself in.
        dns: the zone in which it registers itself; None is nowhere.
        state_dir: keys and the journal of temporary files; None keeps nothing.
        inherited_environment: what commands get instead of a login environment (the loopback agent).
        home: where commands start and relative file names begin; None is the user's home directory.
        handshake_seconds: what a peer has to prove who it is.
        unauthenticated_max: connections that have not done so, at once.
        keepalive_seconds: silence after which a peer is asked for a sign of life, idle and with a
            request outstanding.
        keepalive_missed: intervals of silence after which a link is lost.
        session_ttl_seconds: how long a session outlives its link.
        sessions_per_key_max, sessions_max: above these the oldest session that is lost and idle goes.
        on_lost: what becomes of the commands of a session whose link is lost.
        on_lost_after_seconds: with `OnLost.KILL`, how long a session may be without a link before its commands are
            ended. A connector that has lost its link notices within 15 s and tries for 60 s to come back, unless it
            is told otherwise: what is killed earlier may still be wanted.
        requests_max: requests that one session may have open.
        commands_max: commands that the whole agent runs at once.  Each holds up to five descriptors, so that 512
            of them, and as many links, stay within 4,096, the lowest hard limit that is usual.
        umask: that of commands and of files that are made; None is the one this process has.
        nice: the niceness of commands; None is the one this process has.
        cgroups: whether each command gets a cgroup of its own.
        memory_max_bytes: what all processes of a command may use together; None is no limit.
        tasks_max: how many processes and threads a command may have; None is no limit.
        grace_seconds: between TERM and KILL.
        stop_seconds: what running requests have left to end in after SIGTERM.
        drain: when a command whose outputs stay open is over.
        sync: how far an uploaded file is pushed to the disk.
        log: how the log is written.
    """

    listen: tuple[tuple[str | None, int], ...] = ()
    announce: bool = True
    announce_interfaces: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    dns: DnsZone | None = None
    state_dir: Path | None = None
    inherited_environment: Mapping[bytes, bytes] | None = None
    home: bytes | None = None
    handshake_seconds: float = 10.0
    unauthenticated_max: int = 256
    keepalive_seconds: tuple[float, float] = (15.0, 5.0)
    keepalive_missed: int = 3
    session_ttl_seconds: float = 600.0
    sessions_per_key_max: int = 64
    sessions_max: int = 1024
    on_lost: OnLost = OnLost.KEEP
    on_lost_after_seconds: float = 90.0
    requests_max: int = CHANNELS_MAX
    commands_max: int = 512
    umask: int | None = None
    nice: int | None = None
    cgroups: Cgroups = Cgroups.OFF
    memory_max_bytes: int | None = None
    tasks_max: int | None = None
    grace_seconds: float = 5.0
    stop_seconds: float = 10.0
    drain: Drain = field(default_factory=Drain)
    sync: SyncPolicy = SyncPolicy.NONE
    log: LogFormat = LogFormat.AUTO

    def environment(self) -> dict[bytes, bytes]:
        """Return a fresh environment for a command."""
        if self.inherited_environment is not None:
            return dict(self.inherited_environment)
        return login_environment()

    def directory(self, environment: Mapping[bytes, bytes]) -> bytes:
        """Return where a command starts and relative names begin."""
        if self.home is not None:
            return self.home
        home = environment.get(b"HOME", b"/")
        # A home that is missing or closed to us (nobody's) must not make every command fail.
        return home if os.path.isdir(home) and os.access(home, os.X_OK) else b"/"
