"""A command and a link that breaks at any byte: the output is exact, and the command ran once."""

from __future__ import annotations

import random

import gevent
import pytest

from tests.faults.helpers import REQUEST_BYTES_MIN, NumberedLines, connected, times, until
from tests.faults.proxy import DEADLY, DOWN, UP, Fault

HANDSHAKE_BYTES = {UP: 165, DOWN: 200}
"""What a reconnect takes at least until it carries the session on."""


def lost_and_resumed(told):
    """Assert that the user read one line for the loss and one for the resumption."""
    assert len(told) == 2, told
    assert "lost (" in told[0]
    assert "resumed: nothing was lost" in told[1]


@pytest.mark.parametrize("seed", range(times(20, 200)))
def test_cut_at_any_byte_costs_nothing(seed, controller, proxy, told, tmp_path):
    """A link that ends in any way, before or behind any byte, is resumed without a trace in the result."""
    rng = random.Random(seed)
    lines = NumberedLines(tmp_path)
    with connected(proxy.port, controller, notify=told.append) as client:
        plan = proxy.plan_any(rng, DEADLY, REQUEST_BYTES_MIN, len(lines.EXPECTED))
        lines.run(client)
        assert len(proxy.committed) == 1, plan
    lost_and_resumed(told)


@pytest.mark.parametrize("direction", [UP, DOWN])
@pytest.mark.parametrize("seed", range(times(4, 60)))
def test_reconnect_that_fails_too_is_tried_again(seed, direction, impatient, controller, proxy, told, tmp_path):
    """The next link breaks within its handshake, its welcome or its replay: the one after it carries on."""
    rng = random.Random(seed)
    lines = NumberedLines(tmp_path)
    with connected(proxy.port, controller, notify=told.append, connect_seconds=1.0) as client:
        proxy.plan(Fault.RESET, DOWN, rng.randrange(len(lines.EXPECTED)))
        possible = [fault for fault in (*DEADLY, Fault.CORRUPT) if (fault, direction) != (Fault.OVERTAKE, DOWN)]
        byte = rng.randrange(HANDSHAKE_BYTES[direction])
        proxy.plan_on_next_link(rng.choice(possible), direction, byte, seconds=0.3)
        lines.run(client)
        assert len(proxy.committed) == 2, proxy.committed
    assert "lost (" in told[0]
    assert "resumed: nothing was lost" in told[-1]


@pytest.mark.parametrize("seed", range(times(8, 100)))
def test_corrupt_byte_costs_the_link_and_not_the_session(seed, impatient, agent, controller, proxy, told, tmp_path):
    """A flipped bit, in a length as in a record, is noticed by whom it reaches, and the result is exact."""
    rng = random.Random(seed)
    lines = NumberedLines(tmp_path)
    with connected(proxy.port, controller, notify=told.append) as client:
        plan = proxy.plan_any(rng, [Fault.CORRUPT], REQUEST_BYTES_MIN, len(lines.EXPECTED))
        lines.run(client)
        assert len(proxy.committed) == 1, plan
    lost_and_resumed(told)
    assert "session-broken" not in agent.log.read_text()


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_corrupt_length_is_noticed_in_time(direction, impatient, controller, proxy, told, tmp_path):
    """A record that will not be whole for hours is silence: the PONGs that trickle into it are no sign of life."""
    counter = tmp_path / "runs"
    said = []
    with connected(proxy.port, controller, notify=told.append) as client:
        script = 'echo run >> "$0"; sleep 1; echo done'
        job = gevent.spawn(client.run, ["sh", "-c", script, str(counter)], on_output=lambda _, data: said.append(data))
        until(counter.exists)
        gevent.sleep(0.1)
        # Nothing is under way: the next byte is the first of a length.
        proxy.plan(Fault.CORRUPT, direction, 0)
        assert job.get(timeout=10).exit == 0
        assert len(proxy.committed) == 1
    lost_and_resumed(told)
    assert b"".join(said) == b"done\n"
    assert counter.read_text() == "run\n"


@pytest.mark.parametrize("seed", range(times(4, 60)))
def test_link_that_lingers_is_replaced(seed, impatient, agent, controller, proxy, told, tmp_path):
    """A link that is dead and stays open at the agent makes way for the next one of its session."""
    rng = random.Random(seed)
    lines = NumberedLines(tmp_path)
    replaced = agent.log.read_text().count("reason=replaced")
    with connected(proxy.port, controller, notify=told.append) as client:
        plan = proxy.plan_any(rng, [Fault.STALL], REQUEST_BYTES_MIN, len(lines.EXPECTED))
        lines.run(client)
        assert len(proxy.committed) == 1, plan
    lost_and_resumed(told)
    assert agent.log.read_text().count("reason=replaced") == replaced + 1


@pytest.mark.parametrize("seed", range(times(2, 40)))
def test_two_links_that_linger_are_replaced_in_turn(seed, impatient, controller, proxy, told, tmp_path):
    rng = random.Random(seed)
    lines = NumberedLines(tmp_path)
    with connected(proxy.port, controller, notify=told.append, connect_seconds=1.0) as client:
        proxy.plan(Fault.STALL, DOWN, rng.randrange(len(lines.EXPECTED)))
        proxy.plan_on_next_link(Fault.STALL, DOWN, rng.randrange(HANDSHAKE_BYTES[DOWN]))
        lines.run(client)
        assert len(proxy.committed) == 2
    assert "resumed: nothing was lost" in told[-1]


@pytest.mark.parametrize("seed", range(times(4, 40)))
def test_paused_network_is_no_loss(seed, controller, proxy, told, tmp_path):
    """A delay shorter than the keepalive is waited for."""
    rng = random.Random(seed)
    lines = NumberedLines(tmp_path)
    with connected(proxy.port, controller, notify=told.append) as client:
        for _ in range(3):
            proxy.plan_any(rng, [Fault.DELAY], REQUEST_BYTES_MIN, len(lines.EXPECTED))
        lines.run(client)
    assert told == []
    assert proxy.links == 1
