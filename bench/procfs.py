"""What /proc tells about a process: its peak memory, its descendants, whether it listens."""

from __future__ import annotations

from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
MIB: Final = 1 << 20
KIB: Final = 1 << 10
TCP_LISTEN: Final = "0A"  # include/net/tcp_states.h, as /proc/net/tcp prints it
RESET_PEAK: Final = "5"  # what clear_refs takes to set VmHWM back to the present size (proc_pid_clear_refs(5))


def _status_bytes(pid: int, field: str) -> int:
    for line in (PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * KIB
    return 0


def memory(pid: int) -> int:
    """Resident memory in bytes; 0 for a process that has gone."""
    try:
        return _status_bytes(pid, "VmRSS:")
    except OSError:
        return 0


def peak_memory(pid: int) -> int:
    """The highest resident memory in bytes since `reset_peak`; 0 for a process that has gone."""
    try:
        return _status_bytes(pid, "VmHWM:")
    except OSError:
        return 0


def reset_peak(pid: int) -> int:
    """Start a new peak at the present size, and return that size in bytes."""
    try:
        (PROC / str(pid) / "clear_refs").write_text(RESET_PEAK)
    except OSError:
        return 0
    return memory(pid)


def available_memory() -> int:
    """Bytes that the kernel thinks it could still hand out."""
    for line in (PROC / "meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * KIB
    return 0


def process_tree(root: int) -> list[int]:
    """*root* and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The command's name may hold blanks and brackets, so count from behind the last one.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def is_listening(pid: int, port: int) -> bool:
    """Whether a socket listens on TCP *port* in the network namespace of *pid*.

    Asked of the kernel and not by connecting: sshd penalises addresses that connect and say nothing.
    """
    try:
        rows = (PROC / str(pid) / "net" / "tcp").read_text().splitlines()[1:]
    except OSError:
        return False
    for row in rows:
        _, local, _, state, *_ = row.split()
        if state == TCP_LISTEN and int(local.rpartition(":")[2], 16) == port:
            return True
    return False


class PeakGrowth:
    """By how much the peak memory of a process tree rises from now on."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._before = {pid: reset_peak(pid) for pid in process_tree(root)}

    def measured(self) -> int:
        """Bytes, summed over the processes that are there now; one that is new counts in full."""
        return sum(max(0, peak_memory(pid) - self._before.get(pid, 0)) for pid in process_tree(self._root))
