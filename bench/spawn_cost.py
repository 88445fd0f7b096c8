"""What a command costs an agent more than starting it takes: `sh -c true`, by posix_spawn and by an agent.

    python bench/spawn_cost.py [COUNT]

Three things take turns in this process: `sh -c true` by posix_spawn with two pipes that are read to their ends, the
same by `AgentClient.run` from an agent on loopback, and a request that starts nothing (`info`), which has the way there
and back, the cipher and both event loops in it. What is left of the second without the other two is what the command
costs at the agent. The same is told of processor time, of whoever starts the command: that a busy machine changes less.
"""

from __future__ import annotations

import os
import select
import statistics
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import machine
from agentd import running_agent
from lab import LOOPBACK, temporary_lab
from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_connector.client import AgentClient
from tables import number, quartiles, table

if TYPE_CHECKING:
    from collections.abc import Callable

ARGV: Final = ("sh", "-c", "true")
COUNT: Final = 600
BLOCK: Final = 20
WARM_UP: Final = 50
US: Final = 1e6
TARGET_US: Final = 500


def spawn() -> None:
    """Run the command as plainly as a program can that wants its outputs and its status."""
    read_out, out = os.pipe()
    read_err, err = os.pipe()
    null = os.open(os.devnull, os.O_RDONLY)
    actions = [(os.POSIX_SPAWN_DUP2, number, to) for to, number in enumerate((null, out, err))]
    pid = os.posix_spawnp(ARGV[0], ARGV, os.environ, file_actions=actions, setsid=True)
    for descriptor in (null, out, err):
        os.close(descriptor)
    poll = select.poll()
    left = {read_out, read_err}
    for descriptor in left:
        poll.register(descriptor, select.POLLIN)
    while left:
        for descriptor, _ in poll.poll():
            if not os.read(descriptor, 65536):
                poll.unregister(descriptor)
                left.remove(descriptor)
                os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    assert status == 0


def processor_s(pid: int) -> float:
    """Seconds that the threads of a process have run so far."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def measured(count: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the seconds of each run, and by blocks the processor's of its starter for one, under the three names."""
    with temporary_lab() as lab, running_agent(lab, LOOPBACK) as agent:
        client = AgentClient(
            agent.address, agent.port, identity=load_or_create(agent.controller_home), check_key=lambda *_: None
        )
        client.connect()

        def run() -> None:
            assert client.run(ARGV).exit == 0

        runs: dict[str, Callable[[], object]] = {"posix_spawn": spawn, "agent": run, "info": client.info}
        starters = {"posix_spawn": os.getpid(), "agent": agent.pid, "info": agent.pid}
        taken: dict[str, list[float]] = {name: [] for name in runs}
        processor: dict[str, list[float]] = {name: [] for name in runs}
        for call in runs.values():
            for _ in range(WARM_UP):
                call()
        order = list(runs)
        while len(taken["info"]) < count:
            order = [*order[1:], order[0]]  # so that none always follows the same other
            for name in order:
                call, before = runs[name], processor_s(starters[name])
                for _ in range(BLOCK):
                    start = time.perf_counter()
                    call()
                    taken[name].append(time.perf_counter() - start)
                processor[name].append((processor_s(starters[name]) - before) / BLOCK)
        client.close()
    return taken, processor


def report(taken: dict[str, list[float]], processor: dict[str, list[float]]) -> str:
    """Return the tables in markdown, in microseconds."""
    titles = {"posix_spawn": "`sh -c true` by posix_spawn", "agent": "`sh -c true` by an agent", "info": "`info`"}
    rows = [
        [
            titles[name],
            str(len(values)),
            number(statistics.median(values) * US),
            quartiles(values, US),
            number(statistics.median(processor[name]) * US),
        ]
        for name, values in taken.items()
    ]
    cost, of_processor = (
        US * (median["agent"] - median["info"] - median["posix_spawn"])
        for median in ({name: statistics.median(found[name]) for name in found} for found in (taken, processor))
    )
    head = ["what", "n", "median us", "quartiles", "processor us"]
    verdict = f"A command costs an agent {cost:.0f} us more, {of_processor:.0f} us of a processor;"
    verdict += f" wanted are at most {TARGET_US} us: {'met' if cost <= TARGET_US else 'NOT met'}."
    return f"{table(head, rows)}\n\n{verdict}"


def main() -> None:
    """Measure and print."""
    count = next((int(word) for word in islice(sys.argv, 1, 2)), COUNT)
    print(machine.facts(), report(*measured(count)), sep="\n\n")


if __name__ == "__main__":
    main()
