"""Windows are arithmetic: no credit is lost, invented or owed, and growth is paid for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_agent_protocol._constants import WINDOW_INITIAL_BYTES, WINDOW_MAX_BYTES, WINDOW_OPEN_BYTES
from pyinfra_agent_protocol._errors import WindowExceeded
from pyinfra_agent_protocol._window import Budget, ReceiveWindow, SendWindow
from tests.protocol.helpers import reproducible

PLENTY = 1 << 40


def drained(window, count):
    """Let the peer send *count* bytes and the reader take them all."""
    window.receive(count)
    return window.consume(count)


# --- the sender ---


def test_sender_starts_with_the_initial_window_and_uses_it_up():
    window = SendWindow()
    assert window.available == WINDOW_INITIAL_BYTES
    window.use(WINDOW_INITIAL_BYTES)
    assert window.available == 0


def test_sender_takes_a_higher_limit_and_ignores_a_restated_or_lower_one():
    window = SendWindow()
    assert window.grant(WINDOW_INITIAL_BYTES + 1)
    assert not window.grant(WINDOW_INITIAL_BYTES + 1)
    assert not window.grant(0)
    assert window.available == WINDOW_INITIAL_BYTES + 1


def test_sender_says_blocked_once_for_each_limit_and_again_on_a_new_link():
    window = SendWindow()
    assert not window.note_blocked()
    assert not window.is_blocked
    window.use(WINDOW_INITIAL_BYTES)
    assert not window.is_blocked
    assert window.note_blocked()
    assert window.is_blocked
    assert not window.note_blocked()
    window.forget_blocked()
    assert window.note_blocked()
    window.grant(WINDOW_INITIAL_BYTES + 5)
    assert not window.is_blocked
    window.use(5)
    assert window.note_blocked()


# --- the receiver ---


def test_receiver_takes_exactly_what_it_granted():
    window = ReceiveWindow(Budget(0))
    window.receive(WINDOW_INITIAL_BYTES)
    with pytest.raises(WindowExceeded, match=f"{WINDOW_INITIAL_BYTES + 1} bytes on a channel that was granted"):
        window.receive(1)
    assert window.received == WINDOW_INITIAL_BYTES


def test_receiver_grants_again_when_half_a_window_was_consumed():
    window = ReceiveWindow(Budget(PLENTY))
    half = WINDOW_INITIAL_BYTES // 2
    assert drained(window, half - 1) is None
    assert drained(window, 1) == half + WINDOW_INITIAL_BYTES
    assert window.size == WINDOW_INITIAL_BYTES


def test_receiver_grows_when_it_has_drained_and_the_peer_was_blocked():
    window = ReceiveWindow(Budget(PLENTY))
    drained(window, WINDOW_INITIAL_BYTES // 2)
    drained(window, window.limit - window.received)
    assert window.size == WINDOW_INITIAL_BYTES
    window.receive(window.limit - window.received)
    assert window.receive_blocked(window.limit) is None
    assert window.size == WINDOW_INITIAL_BYTES
    assert window.consume(window.buffered) == window.consumed + 2 * WINDOW_INITIAL_BYTES
    assert window.size == 2 * WINDOW_INITIAL_BYTES


def test_receiver_whose_reader_lags_does_not_grow():
    """A blocked peer and a reader that always has more than half a window left change nothing."""
    window = ReceiveWindow(Budget(PLENTY))
    for _ in range(20):
        window.receive(window.limit - window.received)
        window.receive_blocked(window.limit)
        window.consume(window.buffered - window.size // 2 - 1)
    assert window.size == WINDOW_INITIAL_BYTES


def test_receiver_whose_reader_takes_large_pieces_grows():
    """Such a reader is never at the very end: half a window is what it waits for."""
    window = ReceiveWindow(Budget(PLENTY))
    window.receive(window.limit)
    window.receive_blocked(window.limit)
    window.consume(window.size // 2)
    assert window.size == 2 * WINDOW_INITIAL_BYTES


def test_receiver_does_not_believe_a_peer_that_says_blocked_and_is_not():
    """Words alone reserve nothing: BLOCKED counts behind the bytes that it speaks of, and once."""
    budget = Budget(PLENTY)
    window = ReceiveWindow(budget)
    for limit in (0, 1, WINDOW_INITIAL_BYTES, WINDOW_INITIAL_BYTES + 1, 2**64 - 1):
        assert window.receive_blocked(limit) is None
    drained(window, 1)
    assert window.receive_blocked(1) is None
    assert budget.reserved_bytes == 0
    drained(window, WINDOW_INITIAL_BYTES - 1)
    assert window.receive_blocked(WINDOW_INITIAL_BYTES) == 3 * WINDOW_INITIAL_BYTES
    for _ in range(3):
        assert window.receive_blocked(WINDOW_INITIAL_BYTES) is None
    assert window.size == 2 * WINDOW_INITIAL_BYTES


def test_receiver_grows_up_to_the_largest_window_and_no_further():
    budget = Budget(PLENTY)
    window = ReceiveWindow(budget)
    for _ in range(20):
        window.receive(window.limit - window.received)
        window.receive_blocked(window.received)
        window.consume(window.buffered)
    assert window.size == WINDOW_MAX_BYTES
    assert budget.reserved_bytes == WINDOW_MAX_BYTES - WINDOW_INITIAL_BYTES


def test_receiver_without_budget_still_grants_what_it_had():
    window = ReceiveWindow(Budget(WINDOW_INITIAL_BYTES - 1))
    window.receive(WINDOW_INITIAL_BYTES)
    window.receive_blocked(WINDOW_INITIAL_BYTES)
    assert window.consume(WINDOW_INITIAL_BYTES) == 2 * WINDOW_INITIAL_BYTES
    assert window.size == WINDOW_INITIAL_BYTES


@pytest.mark.parametrize(("budget", "size"), [(0, 1), (1, 2), (2, 2), (3, 4), (6, 4), (7, 8), (100, 8)])
def test_receiver_widens_by_doubling_as_far_as_its_budget_goes(budget, size):
    """A part that does not make a whole step is left to others."""
    share = Budget(budget * WINDOW_INITIAL_BYTES)
    window = ReceiveWindow(share)
    assert window.widen(WINDOW_OPEN_BYTES) is (size > 1)
    assert window.size == window.limit == size * WINDOW_INITIAL_BYTES
    assert share.reserved_bytes == window.size - WINDOW_INITIAL_BYTES
    window.close()
    assert share.reserved_bytes == 0


def test_receiver_that_was_widened_grants_again_at_half_and_grows_on():
    budget = Budget(PLENTY)
    window = ReceiveWindow(budget)
    window.widen(WINDOW_OPEN_BYTES)
    assert drained(window, WINDOW_OPEN_BYTES // 2 - 1) is None
    assert drained(window, 1) == WINDOW_OPEN_BYTES // 2 + WINDOW_OPEN_BYTES
    window.receive(window.limit - window.received)
    window.receive_blocked(window.received)
    assert window.consume(window.buffered) == window.consumed + 2 * WINDOW_OPEN_BYTES
    assert budget.reserved_bytes == 2 * WINDOW_OPEN_BYTES - WINDOW_INITIAL_BYTES


def test_receiver_that_was_widened_takes_no_blocked_below_its_limit_for_evidence():
    """The sender said it before it had the CREDIT that is on its way."""
    window = ReceiveWindow(Budget(PLENTY))
    window.widen(WINDOW_OPEN_BYTES)
    drained(window, WINDOW_INITIAL_BYTES)
    assert window.receive_blocked(WINDOW_INITIAL_BYTES) is None
    assert window.size == WINDOW_OPEN_BYTES


def test_receiver_gives_its_growth_back_once():
    agent = Budget(PLENTY)
    session = Budget(PLENTY, agent)
    window = ReceiveWindow(session)
    window.receive(WINDOW_INITIAL_BYTES)
    window.receive_blocked(WINDOW_INITIAL_BYTES)
    window.consume(WINDOW_INITIAL_BYTES)
    assert (session.reserved_bytes, agent.reserved_bytes) == (WINDOW_INITIAL_BYTES, WINDOW_INITIAL_BYTES)
    window.close()
    window.close()
    assert (session.reserved_bytes, agent.reserved_bytes) == (0, 0)


def test_budget_reserves_nothing_anywhere_when_the_parent_has_too_little():
    agent = Budget(10)
    one, other = Budget(8, agent), Budget(8, agent)
    assert one.reserve(8)
    assert not one.reserve(1)
    assert not other.reserve(3)
    assert other.reserved_bytes == 0
    assert other.reserve(2)
    one.release(8)
    assert (one.reserved_bytes, other.reserved_bytes, agent.reserved_bytes) == (0, 2, 2)


# --- both, with what is under way between them ---


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["send", "arrive", "consume", "credit", "restate", "relink"]), st.integers(1, 400_000)),
    max_size=120,
)


@reproducible(150)
@given(OPERATIONS, st.integers(0, 6) | st.just(60), st.integers(0, 6) | st.just(60), st.booleans())
def test_credit_is_never_negative_never_lost_and_never_exceeded(operations, session_share, agent_share, widened):
    """Whatever the order and however often credit is restated or lost, the two ends agree in the end."""
    agent_budget = Budget(agent_share * WINDOW_INITIAL_BYTES)
    budget = Budget(session_share * WINDOW_INITIAL_BYTES, agent_budget)
    sender, receiver = SendWindow(), ReceiveWindow(budget)
    if widened:
        receiver.widen(WINDOW_OPEN_BYTES)
        sender.grant(receiver.limit)
    upward: list[tuple[str, int]] = []
    credits: list[int] = []
    blocked_arrived = False

    def note(limit):
        if limit is not None:
            assert limit > previous, "an announced limit is news"
            credits.append(limit)

    def arrive():
        nonlocal blocked_arrived
        what, value = upward.pop(0)
        if what == "data":
            receiver.receive(value)
        else:
            blocked_arrived = True
            note(receiver.receive_blocked(value))

    def send(count):
        count = min(count, sender.available)
        if count:
            sender.use(count)
            upward.append(("data", count))
        elif sender.note_blocked():
            upward.append(("blocked", sender.limit))

    for operation, count in operations:
        size, previous, could_grow = receiver.size, receiver.limit, blocked_arrived
        if operation == "send":
            send(count)
        elif operation == "arrive" and upward:
            arrive()
        elif operation == "consume" and receiver.buffered:
            note(receiver.consume(min(count, receiver.buffered)))
        elif operation == "credit" and credits:
            sender.grant(credits.pop(0))
        elif operation == "restate":
            sender.grant(sender.limit)
            credits.append(receiver.limit)
        elif operation == "relink":
            # DATA is replayed, what was said about windows is lost and restated.
            upward = [entry for entry in upward if entry[0] == "data"]
            credits = [receiver.limit]
            sender.forget_blocked()
        if receiver.size != size:
            assert receiver.size == 2 * size
            assert receiver.buffered == 0
            assert could_grow or blocked_arrived
            blocked_arrived = False
        assert sender.available >= 0
        assert sender.limit <= receiver.limit
        assert receiver.limit - receiver.consumed <= receiver.size
        assert budget.reserved_bytes == agent_budget.reserved_bytes == receiver.size - WINDOW_INITIAL_BYTES
        assert budget.reserved_bytes <= min(budget.total_bytes, agent_budget.total_bytes)

    # However it went, a sender with data gets at least half a window once everything has arrived.
    previous = receiver.limit
    while upward:
        previous = receiver.limit
        arrive()
    if receiver.buffered:
        previous = receiver.limit
        note(receiver.consume(receiver.buffered))
    for limit in credits:
        sender.grant(limit)
    assert sender.limit == receiver.limit
    assert sender.sent == receiver.received == receiver.consumed
    assert sender.available >= receiver.size // 2
    receiver.close()
    assert budget.reserved_bytes == agent_budget.reserved_bytes == 0
