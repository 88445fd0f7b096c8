"""The throw-away directories, environment and server processes of one benchmark run."""

from __future__ import annotations

import os
import shutil
import signal
import site
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SHARED_MEMORY: Final = Path("/dev/shm")  # so that copies measure the connection and not a disk
READY_WITHIN_S: Final = 15.0
POLL_S: Final = 0.02
STOP_WITHIN_S: Final = 5.0


class PeerUnavailableError(Exception):
    """A peer cannot take part; the message says why, in words for the report."""


@dataclass(frozen=True, slots=True)
class Lab:
    """Directories of one run. `home` stays empty: shell and SSH start-up files would be measured otherwise."""

    root: Path
    home: Path
    files: Path

    def environment(self) -> dict[str, str]:
        """The environment of every process of the run."""
        kept = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
        return kept | {"HOME": str(self.home), "PYTHONUSERBASE": site.getuserbase()}


@dataclass(frozen=True, slots=True)
class Place:
    """Where servers listen, and the command prefixes that put a process on either side."""

    name: str
    address: str
    server_prefix: Sequence[str] = ()
    client_prefix: Sequence[str] = ()


LOOPBACK: Final = Place("loopback", "127.0.0.1")


@contextmanager
def temporary_lab() -> Iterator[Lab]:
    """Make the directories, and remove them with all that is in them."""
    parent = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    root = Path(tempfile.mkdtemp(prefix="agent-bench-", dir=parent))
    try:
        lab = Lab(root, root / "home", root / "files")
        lab.home.mkdir(mode=0o700)
        lab.files.mkdir(mode=0o700)
        yield lab
    finally:
        shutil.rmtree(root, ignore_errors=True)


def free_port() -> int:
    """A TCP port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(
    argv: Sequence[str], *, port: int, place: Place, log: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until it listens on *port*, hand it over, and end it.

    Raises:
        PeerUnavailableError: it exited, or did not listen within 15 s; with the last line that it logged.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*place.server_prefix, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then ends its servers in order
        )
    try:
        _wait_listening(process, port, log)
        yield process
    finally:
        _stop_with_descendants(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, then make it."""
    process.terminate()
    try:
        process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _stop_with_descendants(process: subprocess.Popen[bytes]) -> None:
    # A session whose peer went without a word, as behind a wire that is taken down, would wait for it for hours.
    for pid in procfs.process_tree(process.pid)[1:]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    stop(process)


def _wait_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not procfs.is_listening(process.pid, port):
        if process.poll() is not None:
            raise PeerUnavailableError(f"the server exited with {process.returncode}: {last_line(log)}")
        if time.monotonic() > deadline:
            raise PeerUnavailableError(f"the server did not listen within {READY_WITHIN_S:g} s: {last_line(log)}")
        time.sleep(POLL_S)


def last_line(log: Path) -> str:
    """The last line that is not blank, for an error message."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "it logged nothing"
