"""Everything at once: several greenlets share one client while the network does at random what it can do."""

from __future__ import annotations

import random
import time
from collections import Counter

import gevent

from tests.faults.helpers import chunks_of, connected, times
from tests.faults.proxy import DEADLY, DOWN, UP, Fault, FaultProxy

SECONDS = times(10, 600)
WORKERS = 6
FINISH_SECONDS = 60
PLANNED_MAX = 2
FILE_BYTES_MAX = 2 << 20


def run_command(client, rng, directory, name):
    """Run a command with input and output; it must run once and echo all of it."""
    counter = directory / f"{name}-runs"
    content = rng.randbytes(rng.randrange(200_000))
    output = bytearray()
    script = 'echo run >> "$0"; cat; sleep 0.0$1; exit 7'
    ended = client.run(
        ["sh", "-c", script, str(counter), str(rng.randrange(10))],
        stdin=rng.choice([content, chunks_of(content)]),
        on_output=lambda _, data: output.extend(data),
    )
    assert ended.exit == 7
    assert bytes(output) == content
    assert counter.read_text() == "run\n"
    counter.unlink()


def transfer(client, rng, directory, name):
    """Put a file, look at it and get it back."""
    there = directory / f"{name}-file"
    content = rng.randbytes(rng.randrange(FILE_BYTES_MAX))
    client.put(chunks_of(content), str(there))
    assert there.read_bytes() == content
    assert client.stat(str(there))["size"] == len(content)
    arrived = bytearray()
    client.get(str(there), arrived.extend)
    assert bytes(arrived) == content
    there.unlink()


def break_links(proxy, rng, until):
    """Plan faults as they are used up: a network that breaks each new link at once shows nothing but pauses."""
    while time.monotonic() < until:
        if proxy.planned < PLANNED_MAX:
            fault = rng.choice([*DEADLY, *DEADLY, Fault.CORRUPT, Fault.DELAY, Fault.STALL])
            direction = UP if fault is Fault.OVERTAKE else rng.choice((UP, DOWN))
            seconds = rng.choice((0.001, 0.05, 0.5))
            if rng.random() < 0.2:
                proxy.plan_on_next_link(fault, direction, rng.randrange(1000), seconds)
            else:
                proxy.plan(fault, direction, int(10 ** rng.uniform(0, 6)), seconds)
        gevent.sleep(rng.uniform(0.01, 0.2))
        if rng.random() < 0.05:
            # What has not happened by now may wait for bytes that never come.
            proxy.forget_plans()
            proxy.reset_all()
    proxy.forget_plans()


def test_any_schedule_of_faults_costs_nothing(impatient, agent, controller, told, tmp_path):
    """Every command runs once, every byte arrives once, and no call fails, whatever happens to the links meanwhile."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    until = time.monotonic() + SECONDS
    done = Counter()

    def work(number):
        own = random.Random(seed + number)
        while time.monotonic() < until:
            job = own.choice([run_command, transfer])
            job(client, own, tmp_path, f"{number}")
            done[job.__name__] += 1

    with (
        FaultProxy(agent.port) as proxy,
        connected(proxy.port, controller, notify=told.append, connect_seconds=2.0, resume_seconds=60.0) as client,
    ):
        workers = [gevent.spawn(work, number) for number in range(WORKERS)]
        breaking = gevent.spawn(break_links, proxy, rng, until)
        # pytest reports the first that failed, with its traceback.
        gevent.joinall([*workers, breaking], timeout=SECONDS + FINISH_SECONDS, raise_error=True)
        assert all(worker.dead for worker in workers), "a call hangs"
    committed = Counter(planned.fault.name for planned in proxy.committed)
    print(f"{dict(done)} over {proxy.links} links with {dict(committed)}")
    assert proxy.links > SECONDS / 2
    assert min(done["run_command"], done["transfer"]) > 10
    assert list(tmp_path.iterdir()) == []
    log = agent.log.read_text()
    assert "connection-failed" not in log
    assert "session-broken" not in log
