"""Names of signals as the target calls them, whatever the controller's own system has for the same numbers."""

from __future__ import annotations

from typing import Final

__all__ = ["signal_name"]

# signal(7), the column of x86 and ARM, which POWER, RISC-V and s390x share. From 1 on.
_LINUX_NAMES: Final = (  # noqa: SIM905 - thirty-one quoted words are harder to check
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG"
    " XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
).split()
_FIRST_REALTIME: Final = 34  # glibc and musl keep 32 and 33 for themselves


def signal_name(number: int) -> str:
    """Return the name of a Linux signal: SIGKILL, SIGRTMIN+2; a number without a name as "signal 99"."""
    if 1 <= number <= len(_LINUX_NAMES):
        return f"SIG{_LINUX_NAMES[number - 1]}"
    if _FIRST_REALTIME <= number <= 64:
        return f"SIGRTMIN+{number - _FIRST_REALTIME}" if number > _FIRST_REALTIME else "SIGRTMIN"
    return f"signal {number}"
