"""An own OpenSSH server with throw-away keys, for the peers that speak SSH."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lab import Lab, PeerUnavailableError, Place, free_port, server

if TYPE_CHECKING:
    from collections.abc import Iterator

PRIVILEGE_SEPARATION: Final = Path("/run/sshd")  # sshd refuses to start without it; its unit makes it otherwise
SFTP_SERVERS: Final = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")

# bash reads ~/.bashrc for every command that sshd starts, and PAM reads what the machine has configured:
# without the empty HOME and UsePAM no, it is those that would be measured.
CONFIG: Final = """\
ListenAddress {address}:{port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/client_key.pub
PidFile none
UsePAM no
UseDNS no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
PrintLastLog no
SetEnv HOME={home}
Subsystem sftp {sftp_server}
"""


@dataclass(frozen=True, slots=True)
class Sshd:
    """A running server and what a client needs to log in to it as root."""

    pid: int
    address: str
    port: int
    client_key: Path
    known_hosts: Path


@contextmanager
def running_sshd(lab: Lab, place: Place) -> Iterator[Sshd]:
    """Start sshd at *place*.

    Raises:
        PeerUnavailableError: not root, not installed, or it did not start.
    """
    if os.geteuid() != 0:
        raise PeerUnavailableError("its own sshd needs root")
    executable = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin") or shutil.which("sshd")
    sftp_server = next((path for path in SFTP_SERVERS if Path(path).exists()), None)
    if executable is None or sftp_server is None or shutil.which("ssh-keygen") is None:
        raise PeerUnavailableError("OpenSSH's server is not installed (on Debian: apt-get install openssh-server)")

    directory = lab.root / f"sshd-{place.name}"
    directory.mkdir(mode=0o700)
    for key in ("host_key", "client_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / key], check=True)
    port = free_port()
    config = directory / "sshd_config"
    config.write_text(
        CONFIG.format(address=place.address, port=port, directory=directory, home=lab.home, sftp_server=sftp_server)
    )
    known_hosts = directory / "known_hosts"
    kind, key_text, *_ = (directory / "host_key.pub").read_text().split()
    known_hosts.write_text(f"[{place.address}]:{port} {kind} {key_text}\n")

    argv = [executable, "-D", "-e", "-f", str(config)]
    with (
        _privilege_separation_directory(),
        server(argv, port=port, place=place, log=directory / "log", environment=lab.environment()) as process,
    ):
        yield Sshd(process.pid, place.address, port, directory / "client_key", known_hosts)


@contextmanager
def _privilege_separation_directory() -> Iterator[None]:
    if PRIVILEGE_SEPARATION.exists():
        yield
        return
    PRIVILEGE_SEPARATION.mkdir(mode=0o755)
    try:
        yield
    finally:
        PRIVILEGE_SEPARATION.rmdir()
