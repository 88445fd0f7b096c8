"""What the agent tells the service manager that started it: sd_notify(3), by its protocol and without its library.

Without a service manager, or with one that was not told to listen (Type=notify), nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Final

from ._limits import reserved_descriptors

__all__ = ["notify", "notify_alive", "notify_ready", "notify_reloading", "notify_stopping", "watchdog_seconds"]

#: What ending takes beyond the time that requests are given: goodbyes, and closing what is open.
_STOP_MARGIN_SECONDS: Final = 5.0


def notify(*assignments: str) -> bool:
    """Send *assignments*, like `READY=1`, in one message; returns whether somebody was there to take it.

    A service manager that does not read must not stop the agent: the message is lost then.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):  # not given; or vsock, which is for whole virtual machines
        return False
    place = "\0" + address[1:] if address.startswith("@") else address
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    try:
        with reserved_descriptors(), socket.socket(socket.AF_UNIX, kind) as sender:
            sender.sendto("\n".join(assignments).encode(), place)
    except OSError:
        return False
    return True


def notify_ready(status: str) -> bool:
    """Say that connections are answered; ends what `notify_reloading` began."""
    return notify("READY=1", f"STATUS={_one_line(status)}")


def notify_reloading() -> bool:
    """Say that the configuration is being read anew."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def notify_stopping(seconds: float) -> bool:
    """Say that the agent ends, and that running requests have *seconds* left: the unit need not know the setting."""
    return notify(
        "STOPPING=1",
        f"EXTEND_TIMEOUT_USEC={int((seconds + _STOP_MARGIN_SECONDS) * 1e6)}",
        "STATUS=stopping: what runs is given its time to end",
    )


def notify_alive(status: str) -> bool:
    """Feed the watchdog, and say what the agent does."""
    return notify("WATCHDOG=1", f"STATUS={_one_line(status)}")


def watchdog_seconds() -> float | None:
    """Return how long the agent may be silent before it is taken for dead; None if nobody watches."""
    try:
        microseconds = int(os.environ.get("WATCHDOG_USEC", ""))
        watched = int(os.environ.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 and watched == os.getpid() else None


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
