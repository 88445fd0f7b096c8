"""The benchmark's end of a worker process, and how several are asked in turn."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lab import Lab, Place, last_line, stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from peers import Peer
    from plan import Effort

WORKER: Final = Path(__file__).with_name("worker.py")
ANSWER_WITHIN_S: Final = 180.0
LEAVE_WITHIN_S: Final = 5.0

Answer = dict[str, Any]


class WorkerClient:
    """One peer's process. A peer that failed once is left out from then on; `failure` says why."""

    def __init__(self, peer: Peer, place: Place, lab: Lab) -> None:
        self.peer = peer
        self.failure: str | None = None
        self._log = lab.root / f"worker-{peer.label.strip('@')}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*place.client_prefix, sys.executable, str(WORKER), peer.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=lab.environment(),
                start_new_session=True,  # Ctrl-C is for the benchmark
            )

    @property
    def label(self) -> str:
        """The peer's name in tables."""
        return self.peer.label

    def ask(self, operation: str, **arguments: object) -> Answer | None:
        """Wait for an operation; None if it failed, with the reason in `failure`."""
        if self.failure is not None:
            return None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = json.dumps({"operation": operation, **arguments}) + "\n"
        try:
            self._process.stdin.write(request.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            self.failure = f"the worker ended: {last_line(self._log)}"
            return None
        if not select.select([self._process.stdout], [], [], ANSWER_WITHIN_S)[0]:
            self.failure = f"{operation}: no answer within {ANSWER_WITHIN_S:g} s"
            self._process.kill()
            return None
        line = self._process.stdout.readline()
        answer: Answer = json.loads(line) if line else {"error": f"the worker ended: {last_line(self._log)}"}
        if "error" in answer:
            self.failure = f"{operation}: {answer['error']}"
            return None
        return answer

    def leave(self) -> None:
        """End the process: it closes its connection when its stdin ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # the worker went before it read what was buffered
            self._process.stdin.close()
        try:
            self._process.wait(LEAVE_WITHIN_S)
        except subprocess.TimeoutExpired:
            stop(self._process)
        self._process.stdout.close()


@contextmanager
def workers(peers: Sequence[Peer], figure: str, place: Place, lab: Lab) -> Iterator[list[WorkerClient]]:
    """A new process for each peer that takes part in *figure*."""
    with ExitStack() as stack:
        clients = []
        for peer in peers:
            if figure in peer.figures:
                client = WorkerClient(peer, place, lab)
                stack.callback(client.leave)
                clients.append(client)
        yield clients


def interleaved(
    clients: Sequence[WorkerClient], effort: Effort, ask: Callable[[WorkerClient], Answer | None]
) -> Mapping[str, list[Answer]]:
    """Ask all peers in turn, round by round, each round beginning with the next: drift then hits all alike."""
    deadline = time.monotonic() + effort.budget_s
    answers: dict[str, list[Answer]] = {client.label: [] for client in clients}
    for number in range(effort.rounds):
        if number and time.monotonic() > deadline:
            break
        first = number % len(clients) if clients else 0
        for client in [*clients[first:], *clients[:first]]:
            answer = ask(client)
            if answer is not None:
                answers[client.label].append(answer)
    return answers
