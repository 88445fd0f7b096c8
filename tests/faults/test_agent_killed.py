"""An agent that is killed: the controller says what it does not know, and nothing is ever run again by itself."""

from __future__ import annotations

import random

import gevent
import pytest

from pyinfra_agent_connector._errors import ConnectionLost
from tests.faults.helpers import connected, times, until
from tests.faults.proxy import FaultProxy

LINE_BYTES = len("run 000\n")


def append(client, counter, number):
    """Add a line with *number* to *counter*."""
    client.run(["sh", "-c", 'printf "run %03d\\n" "$1" >> "$0"; sleep 0.02', str(counter), str(number)])


@pytest.mark.parametrize("seed", range(times(3, 30)))
def test_killed_agent_leaves_the_outcome_open_and_runs_nothing_twice(seed, lab, tmp_path):
    """Commands run one after the other until the agent is killed at any moment, and go on when it is back."""
    rng = random.Random(seed)
    counter = tmp_path / "runs"
    controller = lab.controller()
    agent = lab.agent(controller)
    succeeded = []
    errors = []
    with FaultProxy(agent.port) as proxy, connected(proxy.port, controller) as client:

        def work():
            for number in range(1000):
                try:
                    append(client, counter, number)
                except ConnectionLost as error:
                    errors.append((number, str(error)))
                    return
                succeeded.append(number)

        working = gevent.spawn(work)
        until(counter.exists)
        gevent.sleep(rng.uniform(0, 0.1))
        agent.process.kill()
        agent.process.wait()
        lab.agent(listen=f"127.0.0.1:{agent.port}")
        working.join(20)
        assert working.dead
        [(number, error)] = errors
        assert "whether it has finished is not known" in error
        append(client, counter, 999)
    ran = [int(line.split()[1]) for line in counter.read_text().splitlines()]
    assert ran == sorted(set(ran)), "something ran twice"
    assert ran in ([*succeeded, 999], [*succeeded, number, 999])
