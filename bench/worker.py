"""The process of one peer: reads requests on stdin, one JSON map a line, and answers on stdout likewise.

    python worker.py '{"driver": "pyinfra", "name": "@ssh/127.0.0.1", "settings": {...}}'

A request names an operation, and bounds it by a count and by seconds. The clock is read here, around the call, so
neither imports nor the pipe to the benchmark are ever in a figure. `client.WorkerClient` is the other end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from drivers import Driver

Answer = dict[str, Any]


def bounded(count: int, budget_s: float) -> Iterator[int]:
    """Numbers from 0, at most *count* of them, the first always and no other after *budget_s* seconds."""
    deadline = time.perf_counter() + budget_s
    for number in range(count):
        if number and time.perf_counter() > deadline:
            return
        yield number


def seconds(call: Callable[[], object]) -> float:
    """How long *call* took."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Operations:
    """What can be asked of a worker. Every answer holds seconds and bytes."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._connected = False

    def connect(self, count: int, budget_s: float) -> Answer:
        """Connect anew so many times; the last connection stays for what is asked next."""
        connected, answered = [], []
        for _ in bounded(count, budget_s):
            self.close()
            start = time.perf_counter()
            self._open()
            connected.append(time.perf_counter() - start)
            self._driver.command("true")
            answered.append(time.perf_counter() - start)
        return {"connected_s": connected, "answered_s": answered}

    def command(self, count: int, budget_s: float) -> Answer:
        """Run `true`."""
        return {"s": [seconds(lambda: self._driver.command("true")) for _ in bounded(count, budget_s)]}

    def put(self, local: str, remote: str, distinct: bool, count: int, budget_s: float) -> Answer:
        """Copy *local* to *remote*, or to *remote*0, *remote*1, ... where they shall be distinct files."""

        def once(number: int) -> None:
            self._driver.put(local, f"{remote}{number}" if distinct else remote)

        return self._copies(once, count, budget_s)

    def get(self, remote: str, local: str, count: int, budget_s: float) -> Answer:
        """Copy *remote* to *local*."""
        return self._copies(lambda _: self._driver.get(remote, local), count, budget_s)

    def stream(self, script: str) -> Answer:
        """Run a script that prints much: until its output is there, and until each line of it was looked at."""
        import procfs

        before = procfs.reset_peak(os.getpid())
        start = time.perf_counter()
        lines = self._driver.command(script)
        ended = time.perf_counter() - start
        ended_peak = procfs.peak_memory(os.getpid())
        size = _size(lines)
        return {
            "bytes": size,
            "before_bytes": before,
            "ended": {"s": ended, "peak_bytes": ended_peak},
            "read": {"s": time.perf_counter() - start, "peak_bytes": procfs.peak_memory(os.getpid())},
        }

    def session(self, local: str, remote: str, back: str, count: int, budget_s: float) -> Answer:
        """From a new connection on, each thing once and then again: what the first of a kind costs shows."""
        driver = self._driver
        steps: dict[str, Callable[[], object]] = {
            "connect": self._open,
            "first command": lambda: driver.command("true"),
            "command": lambda: driver.command("true"),
            "first put": lambda: driver.put(local, remote),
            "put": lambda: driver.put(local, remote),
            "first get": lambda: driver.get(remote, back),
            "get": lambda: driver.get(remote, back),
        }
        taken: dict[str, list[float]] = {step: [] for step in steps}
        for _ in bounded(count, budget_s):
            self.close()
            for step, call in steps.items():
                taken[step].append(seconds(call))
        return taken

    def close(self) -> Answer:
        """Close the connection, if there is one."""
        if self._connected:
            self._connected = False
            self._driver.close()
        return {}

    def _open(self) -> None:
        self._driver.connect()
        self._connected = True

    def _copies(self, once: Callable[[int], None], count: int, budget_s: float) -> Answer:
        import procfs

        before = procfs.reset_peak(os.getpid())
        taken = [seconds(lambda number=number: once(number)) for number in bounded(count, budget_s)]  # type: ignore[misc]
        return {"s": taken, "growth_bytes": procfs.peak_memory(os.getpid()) - before}


def _size(lines: Iterable[str]) -> int:
    return sum(len(line) + 1 for line in lines)


def serve(operations: Operations, requests: Iterable[str], replies: IO[str]) -> None:
    """Answer requests until there are no more."""
    for line in requests:
        request = json.loads(line)
        try:
            answer = getattr(operations, request.pop("operation"))(**request)
        except Exception as error:  # whatever a peer's library raises is an answer: the peer failed
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


def main() -> None:
    """Serve one peer."""
    peer = json.loads(sys.argv[1])
    requests: Any = sys.stdin
    if peer["driver"] == "pyinfra":
        from gevent import monkey

        monkey.patch_all()
        from gevent.fileobject import FileObject

        # Waiting here must let greenlets run, as they do in pyinfra: a connection has keepalives to answer.
        requests = FileObject(0, "r", closefd=False)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not stand between the replies

    from drivers import DRIVERS

    operations = Operations(DRIVERS[peer["driver"]](peer["name"], peer["settings"]))
    serve(operations, requests, replies)
    operations.close()
    os._exit(0)  # threads that a library left running would keep the process


if __name__ == "__main__":
    main()
