"""Ctrl-C in pyinfra's command ends our requests at once, here and on the targets.

pyinfra's own handler of SIGINT raises SystemExit in the main greenlet, which then disconnects every host through the
pool of greenlets that run the operations: where the pool is full it waits until a command has ended by itself. So a
handler of ours goes in front of it while a client is connected. It ends the greenlets that wait for an agent, with
GreenletExit as pyinfra's authors meant it (`gevent.signal_handler(SIGINT, gevent.kill)` stands in their `main`), for
which nothing is printed, retried or asked. Leaving a request before its answer cancels it on the agent.

Only in pyinfra's command, and only in front of a handler that is not Python's own: a program that uses pyinfra as a
library decides about its signals itself.
"""

from __future__ import annotations

import atexit
import functools
import signal
import sys
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

import gevent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

__all__ = ["Interrupts", "interrupts"]

P = ParamSpec("P")
T = TypeVar("T")

#: For all clients to be closed at exit, after the first Ctrl-C and after a second one.
_CLOSE_SECONDS: Final = 1.0
_HURRY_SECONDS: Final = 0.2

#: An exception in the middle of these would cost the link, and with it the cancellations; none of them waits for
#: anything but the network, so the event loop can raise it instead.
_NOT_TO_BE_BROKEN: Final = (
    "pyinfra_agent_protocol.",
    "pyinfra_agent_connector._call",
    "pyinfra_agent_connector._connection",
    "pyinfra_agent_connector._link",
    "pyinfra_agent_connector._opening",
    "pyinfra_agent_connector._processes",
)


class _Client(Protocol):
    def close(self) -> None: ...


class Interrupts:
    """The handler, and whom it ends.  There is one of these in a process, `interrupts`."""

    def __init__(self) -> None:
        #: True from the first Ctrl-C on, for good: pyinfra's command ends after it.
        self.is_interrupted = False
        self._is_hurried = False
        self._clients: weakref.WeakSet[Any] = weakref.WeakSet()
        self._waiting: dict[Any, int] = {}
        self._leaving: set[Any] = set()
        self._previous: Callable[[int, FrameType | None], Any] | None = None
        self._has_exit_handler = False

    # --- for clients ---

    def chain(self, client: _Client) -> None:
        """Let Ctrl-C end what *client* does until `release`; may be called any number of times."""
        self._clients.add(client)
        # Not imported: who uses a client without pyinfra shall not wait for it.
        is_cli = getattr(sys.modules.get("pyinfra"), "is_cli", False)
        previous = signal.getsignal(signal.SIGINT)
        if self._previous is not None or not is_cli:
            return
        if not callable(previous) or previous is signal.default_int_handler:
            return
        with suppress(ValueError):  # this is not the main thread, where alone Python handles signals
            signal.signal(signal.SIGINT, self._on_signal)
            self._previous = previous
            if not self._has_exit_handler:
                # Here and not on import: this one has to run before those that close connections and stop agents.
                atexit.register(self._close_all)
                self._has_exit_handler = True

    def release(self, client: _Client) -> None:
        """Let go of *client*; with the last one pyinfra's own handler is back."""
        self._clients.discard(client)
        # A handler that somebody put in front of ours stays, and calls ours, which calls the previous one.
        if self._previous is not None and not self._clients and signal.getsignal(signal.SIGINT) == self._on_signal:
            with suppress(ValueError):
                signal.signal(signal.SIGINT, self._previous)
                self._previous = None

    def interruptible(self) -> Interruptible:
        """Be ended by Ctrl-C within this block, or this function, with GreenletExit.

        Raises:
            GreenletExit: also on entry, once there was a Ctrl-C.
            KeyboardInterrupt: instead of it in the main greenlet, which nobody can end by GreenletExit.
        """
        return Interruptible(self)

    def begin_waiting(self) -> Any:  # noqa: ANN401 - gevent has no types
        """Begin such a block; return what `end_waiting` takes, None for a greenlet that may go on."""
        current = gevent.getcurrent()
        if current in self._leaving:
            return None
        if self.is_interrupted:
            raise KeyboardInterrupt if current.parent is None else gevent.GreenletExit
        self._waiting[current] = self._waiting.get(current, 0) + 1
        return current

    def end_waiting(self, begun: Any) -> None:  # noqa: ANN401 - gevent has no types
        """End such a block."""
        if begun is None:
            return
        self._waiting[begun] -= 1
        if not self._waiting[begun]:
            del self._waiting[begun]

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Let this greenlet ask its agent for what has to be done on the way out, Ctrl-C or not."""
        current = gevent.getcurrent()
        self._leaving.add(current)
        try:
            yield
        finally:
            self._leaving.discard(current)

    # --- on Ctrl-C ---

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        loop = gevent.get_hub().loop
        if self.is_interrupted:
            self._is_hurried = True
        else:
            self.is_interrupted = True
            # By the event loop, first of all that it will do: here any code may have been interrupted half-way.
            loop.run_callback(self._end_waiting)
        assert self._previous is not None
        if _is_not_to_be_broken(frame):
            loop.run_callback(self._previous, number, None)
        else:
            # Not by the event loop, which stands still while pyinfra prompts.
            self._previous(number, frame)

    def _end_waiting(self) -> None:
        for greenlet in tuple(self._waiting):
            if greenlet.parent is not None:  # the main greenlet gets its exception from pyinfra's handler
                gevent.kill(greenlet)  # which does not wait for it

    def _close_all(self) -> None:
        """At exit: close what pyinfra did not come to close."""
        if self.is_interrupted:
            # There is nothing left that an exception could end: a further Ctrl-C ends the process.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            seconds = _HURRY_SECONDS if self._is_hurried else _CLOSE_SECONDS
            gevent.joinall([gevent.spawn(client.close) for client in tuple(self._clients)], timeout=seconds)


# Every request is in one: a generator would take as long as some of the rest.
class Interruptible:
    """A block, or a function, that `Interrupts.interruptible` makes."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        self._begun = self._interrupts.begin_waiting()

    def __exit__(self, *error: object) -> None:
        self._interrupts.end_waiting(self._begun)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Return *function* as such a block."""

        @functools.wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> T:
            with Interruptible(self._interrupts):  # many greenlets may be in it at a time
                return function(*args, **options)

        return call


def _is_not_to_be_broken(frame: FrameType | None) -> bool:
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(_NOT_TO_BE_BROKEN):
            return True
        frame = frame.f_back
    return False


#: The process's own.
interrupts: Final = Interrupts()
