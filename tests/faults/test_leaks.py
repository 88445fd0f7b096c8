"""What is left when the network has been at its worst: nothing, on either side."""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path

import gevent
import pytest

from tests.faults.helpers import NumberedLines, chunks_of, connected, descriptors, times, until
from tests.faults.proxy import DEADLY, DOWN, UP, Fault, FaultProxy

WARM_UP_CLIENTS = 3
CLIENTS = times(8, 500)
UPLOAD_BYTES = 300_000
GROWTH_MAX_KIB = 4 * 1024
WORKER_THREADS_MAX = 4
"""trio keeps a thread that has nothing to do for ten seconds."""


def greenlets():
    gc.collect()
    return sum(isinstance(thing, gevent.Greenlet) and not thing.dead for thing in gc.get_objects())


def threads(agent):
    return len(os.listdir(f"/proc/{agent.process.pid}/task"))


def work(client, proxy, rng, directory):
    """Run a command, put a file and get it while links break."""
    directory.mkdir()
    for _ in range(2):
        proxy.plan(rng.choice(DEADLY), UP, rng.randrange(UPLOAD_BYTES))
        # A stalled link takes a second to be noticed.
        fault = Fault.STALL if rng.random() < 0.05 else rng.choice(DEADLY[:3])
        proxy.plan(fault, DOWN, rng.randrange(len(NumberedLines.EXPECTED)))
    NumberedLines(directory).run(client)
    content = rng.randbytes(UPLOAD_BYTES)
    client.put(chunks_of(content), str(directory / "file"))
    arrived = bytearray()
    client.get(str(directory / "file"), arrived.extend)
    assert bytes(arrived) == content
    assert {path.name for path in directory.iterdir()} == {"runs", "file"}
    proxy.forget_plans()


@pytest.mark.usefixtures("impatient")
def test_broken_links_leave_nothing_behind(lab, tmp_path):
    """Descriptors, threads, greenlets and memory are what they were before dozens of links were lost."""
    rng = random.Random(1)
    controller = lab.controller()
    agent = lab.agent(controller)
    fresh = agent.descriptors

    def run_many(count, name):
        links = 0
        for number in range(count):
            # A client for every other piece of work: sessions end and begin as well as links.
            with FaultProxy(agent.port) as proxy, connected(proxy.port, controller) as client:
                for part in range(2):
                    work(client, proxy, rng, tmp_path / f"{name}-{number}-{part}")
                links += proxy.links
        return links

    run_many(WARM_UP_CLIENTS, "warm")
    here = descriptors(), greenlets()
    before_kib = agent.kib()
    links = run_many(CLIENTS, "run")
    until(lambda: agent.descriptors <= fresh, what="the end of the agent's descriptors")
    until(lambda: greenlets() <= here[1], what="the end of our greenlets")
    growth_kib = agent.kib() - before_kib
    print(f"{links} links: the agent grew by {growth_kib} KiB and has {threads(agent)} threads")
    assert links > 2 * CLIENTS
    assert growth_kib < GROWTH_MAX_KIB
    assert threads(agent) <= 1 + WORKER_THREADS_MAX
    assert descriptors() <= here[0]
    assert not Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text()
    assert "connection-failed" not in agent.log.read_text()
