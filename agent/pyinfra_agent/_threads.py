"""Blocking calls in threads: a disk that hangs must not hang the agent.

To hear of a thread's end takes the event loop 0.2 ms, which is more than a small file takes. So for a call that is
nearly always done in less, the event loop waits for a moment, as it does for each command's start. Where such calls
have lately taken longer (a slow disk, a flush), it does not.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from pyinfra_agent_protocol import RequestRefused

from ._refusal import FileRefused

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

__all__ = ["at_once", "in_background", "in_thread", "in_thread_briefly"]

_MOMENT_SECONDS: Final = 0.001
#: A quarter of a mebibyte takes a tenth of a millisecond, and where each of its pages is waited for half of one.
_QUICK_SECONDS: Final = 0.000_3
#: As many as trio has for itself.
_THREADS_MOST: Final = 40

_threads: Final = ThreadPoolExecutor(_THREADS_MOST, thread_name_prefix="blocking")
#: What the last brief call took.
_last_seconds = 0.0

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """Run a blocking *call*, which no cancellation cuts short; its refusals become the request's."""
    await trio.lowlevel.checkpoint_if_cancelled()
    started = _threads.submit(call)
    await _end_of(started)
    return _refusing(started.result)


async def in_thread_briefly(call: Callable[[], T]) -> T:
    """As `in_thread`, for a *call* that is nearly always done within a moment: then nothing else runs meanwhile."""
    await trio.lowlevel.checkpoint_if_cancelled()
    started = _threads.submit(_timed, call)
    if _last_seconds < _MOMENT_SECONDS:
        with suppress(NotYet):
            started.exception(_MOMENT_SECONDS)
    if not started.done():
        await _end_of(started)
    return _refusing(started.result)


def at_once(call: Callable[[], T]) -> tuple[T, bool]:
    """Do here what needs no thread, for it waits for no disk; its refusals become the request's.

    Beside what it returns this tells whether it was quick: memory itself may have to be waited for, where it is swapped
    out or where a hypervisor has to find it first, and then the next call belongs into a thread.
    """
    began = time.perf_counter()
    result = _refusing(call)
    return result, time.perf_counter() - began < _QUICK_SECONDS


def in_background(call: Callable[[], object]) -> None:
    """Run a blocking *call* that nobody waits for, and whose failure nobody can mend."""
    # No further thread can be started, or the agent ends: one that is there takes the call all the same.
    with suppress(RuntimeError):
        _threads.submit(call)


def _timed(call: Callable[[], T]) -> T:
    global _last_seconds
    began = time.perf_counter()
    try:
        return call()
    finally:
        _last_seconds = time.perf_counter() - began


def _refusing(call: Callable[[], T]) -> T:
    try:
        return call()
    except FileRefused as refusal:
        raise RequestRefused(refusal.code, refusal.text) from refusal


async def _end_of(started: Future[T]) -> None:
    ended = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def note(future: Future[T]) -> None:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(ended.set)

    started.add_done_callback(note)
    with trio.CancelScope(shield=True):
        await ended.wait()
