"""The pool of those who have not proved who they are."""

from __future__ import annotations

import pytest
import trio

from pyinfra_agent._admission import Admission, source_of


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        ("192.0.2.1:5000", "192.0.2.1"),
        ("[2001:db8:1:2:3:4:5:6]:5000", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::9]:1", "2001:db8:1:2::/64"),
        ("[fe80::1%eth0]:5000", "fe80::/64"),
        ("[::ffff:192.0.2.1]:5000", "192.0.2.1"),
        ("somewhere", "somewhere"),
    ],
)
def test_source_is_an_address_or_a_customers_network(peer, source):
    assert source_of(peer) == source


async def hold(admission, address, ended, task_status=trio.TASK_STATUS_IGNORED):
    with admission.handshake(admission.enter(address, lambda: None), 100) as scope:
        task_status.started()
        await trio.sleep_forever()
    ended.append((address, scope.cancelled_caught))


async def test_deadline_ends_a_handshake(autojump_clock):
    admission = Admission(4)
    with admission.handshake(admission.enter("192.0.2.1:1", lambda: None), 10) as scope:
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == 10


async def test_full_pool_lets_one_of_the_largest_source_go(nursery):
    admission = Admission(4)
    ended: list = []
    for address in ("192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3", "198.51.100.1:1"):
        await nursery.start(hold, admission, address, ended)
    await nursery.start(hold, admission, "203.0.113.1:1", ended)
    await trio.testing.wait_all_tasks_blocked()
    assert len(ended) == 1
    assert ended[0][0].startswith("192.0.2.1:")
    assert ended[0][1]


async def test_one_source_is_one_source_from_every_port(nursery):
    """Or a scanner would be as many sources as it has connections, and everybody's equal."""
    admission = Admission(8)
    ended: list = []
    await nursery.start(hold, admission, "203.0.113.1:1", ended)
    for port in range(200):
        await nursery.start(hold, admission, f"192.0.2.1:{port}", ended)
    await trio.testing.wait_all_tasks_blocked()
    assert "203.0.113.1:1" not in dict(ended)
    assert len(ended) == 193


async def test_victim_is_chosen_at_random_and_may_be_the_newest(nursery):
    """Or a newcomer would be pushed out within milliseconds by a scanner that opens thousands a second."""
    admission = Admission(8)
    ended: list = []
    for port in range(400):
        await nursery.start(hold, admission, f"192.0.2.1:{port}", ended)
        await trio.testing.wait_all_tasks_blocked()
    order = [int(peer.partition(":")[2]) for peer, _ in ended]
    assert order != sorted(order)
    assert len(order) == 392


async def test_pool_that_is_not_full_refuses_nobody(nursery):
    admission = Admission(8)
    ended: list = []
    for port in range(8):
        await nursery.start(hold, admission, f"192.0.2.1:{port}", ended)
    await trio.testing.wait_all_tasks_blocked()
    assert ended == []


async def test_whoever_has_finished_leaves_the_pool(nursery):
    admission = Admission(1)
    ended: list = []
    with admission.handshake(admission.enter("192.0.2.1:1", lambda: None), 10):
        pass
    await nursery.start(hold, admission, "192.0.2.1:2", ended)
    await trio.testing.wait_all_tasks_blocked()
    assert ended == []


async def test_whoever_has_spoken_stays_while_one_of_his_source_is_silent():
    """A controller outlives a scanner behind its own address."""
    admission = Admission(8)
    evicted: list = []
    speaker = admission.enter("192.0.2.1:1", lambda: evicted.append("speaker"), has_spoken=True)
    for port in range(2, 500):
        admission.enter(f"192.0.2.1:{port}", lambda: evicted.append("silent"))
    assert speaker.is_taken
    assert evicted == ["silent"] * (499 - 8)


async def test_whoever_was_answered_stays_while_another_of_his_source_was_not():
    """A controller outlives a scanner behind its own address that speaks as controllers do."""
    admission = Admission(8)
    evicted: list = []
    answered = admission.enter("192.0.2.1:1", lambda: evicted.append("answered"), has_spoken=True)
    admission.answer(answered)
    for port in range(2, 500):
        admission.enter(f"192.0.2.1:{port}", lambda: evicted.append("speaker"), has_spoken=True)
    assert answered.is_taken
    assert evicted == ["speaker"] * (499 - 8)


async def test_whoever_was_answered_and_has_not_gone_on_in_a_second_is_the_first_to_go(autojump_clock):
    """Or a scanner that takes its answers and waits would keep out everybody else behind its address."""
    admission = Admission(8)
    held = [admission.enter(f"192.0.2.1:{port}", lambda: None, has_spoken=True) for port in range(8)]
    for seat in held:
        admission.answer(seat)
    await trio.sleep(1)
    for number in range(8):
        newcomer = admission.enter("192.0.2.1:9", lambda: None, has_spoken=True)
        assert newcomer.is_taken
        assert [seat.is_taken for seat in held] == [False] * (number + 1) + [True] * (7 - number)


async def test_source_whose_connections_were_all_answered_makes_room_among_them():
    admission = Admission(8)
    held = [admission.enter(f"192.0.2.1:{port}", lambda: None, has_spoken=True) for port in range(8)]
    for seat in held:
        admission.answer(seat)
    newcomer = admission.enter("198.51.100.1:1", lambda: None)
    assert newcomer.is_taken
    assert sum(seat.is_taken for seat in held) == 7


async def test_source_that_did_harm_gets_half_of_the_pool_until_it_is_forgotten(autojump_clock):
    admission = Admission(8)
    failed = admission.enter("192.0.2.1:1", lambda: None)
    failed.has_failed = True
    admission.leave(failed)
    held = [admission.enter(f"192.0.2.1:{port}", lambda: None) for port in range(20)]
    assert sum(seat.is_taken for seat in held) == 4
    others = [admission.enter(f"198.51.100.{number}:1", lambda: None) for number in range(4)]
    assert all(seat.is_taken for seat in others)
    for seat in held + others:
        admission.leave(seat)
    await trio.sleep(11)
    held = [admission.enter(f"192.0.2.1:{port}", lambda: None) for port in range(8)]
    assert all(seat.is_taken for seat in held)


async def test_sources_that_did_harm_are_remembered_in_bounds(autojump_clock):
    admission = Admission(8)
    for number in range(10_000):
        seat = admission.enter(f"10.0.{number // 250}.{number % 250}:1", lambda: None)
        seat.has_failed = True
        admission.leave(seat)
    assert len(admission._harmful) <= 4096
    assert admission._count == 0
