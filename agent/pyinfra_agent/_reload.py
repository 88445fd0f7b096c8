"""SIGHUP: the configuration is read anew; what can change while the agent runs changes, and the rest is named."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from ._config import ConfigError, changed_keys
from ._limited import why_not_limited
from ._log import log
from ._notify import notify_ready, notify_reloading

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._settings import Settings

__all__ = ["Reloader", "reload_on_signal"]

#: Fields of `Settings` that are looked at each time they are needed. The others were used up at the start.
_CHANGEABLE: Final = frozenset(
    {
        "commands_max",
        "umask",
        "nice",
        "memory_max_bytes",
        "tasks_max",
        "grace_seconds",
        "drain",
        "on_lost",
        "on_lost_after_seconds",
        "session_ttl_seconds",
        "stop_seconds",
        "sync",
    }
)


class Reloader:
    """Knows what the file said last, and what the agent runs with.

    Args:
        running: what the agent runs with: the file's settings, and what the command line said instead.
        read: reads the file anew; raises `ConfigError`.
        apply: makes the agent run with other settings.
    """

    def __init__(self, running: Settings, read: Callable[[], Settings], apply: Callable[[Settings], None]) -> None:
        self._running = running
        self._read = read
        self._apply = apply
        self._at_start = read()

    def reload(self) -> str:
        """Read the file and apply what can be; returns, in a few words, what came of it.

        A file that cannot be used changes nothing.
        """
        try:
            wanted = self._read()
            if (complaint := why_not_limited(wanted)) is not None:
                raise ConfigError([complaint])
        except ConfigError as error:
            for line in error.lines:
                log("configuration-refused", reason=line)
            return f"configuration refused, the former one stays: {error.lines[0]}"
        values = {name: getattr(wanted, name) for name in _CHANGEABLE}
        before, self._running = self._running, replace(self._running, **values)
        self._apply(self._running)
        changed = changed_keys(before, self._running)
        log("reloaded", changed=",".join(changed) or "nothing")
        # Against the start and not the last reload: it is named until the agent was restarted, or it was taken back.
        waiting = changed_keys(replace(self._at_start, **values), wanted)
        if not waiting:
            return "configuration reloaded"
        log("restart-needed", keys=",".join(waiting), reason="these keys are read at the start only")
        return f"configuration reloaded; only a restart changes {', '.join(waiting)}"


async def reload_on_signal(reloader: Reloader, describe: Callable[[], str]) -> None:
    """Reload at each SIGHUP; *describe* says what goes on, for the service manager."""
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            notify_reloading()
            notify_ready(f"{reloader.reload()}; {describe()}")
