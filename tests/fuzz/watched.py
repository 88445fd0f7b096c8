"""A session under observation: what has to hold whatever its peer and its skin do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol import (
    AGENT_BUDGET_BYTES,
    SESSION_BUDGET_BYTES,
    Budget,
    Session,
    Side,
)
from pyinfra_agent_protocol._channel import DOWN, UP, Channel, Half, step
from pyinfra_agent_protocol._constants import (
    FRAME_HEADER_BYTES,
    RECORD_PLAINTEXT_MAX_BYTES,
    WINDOW_INITIAL_BYTES,
    WINDOW_MAX_BYTES,
)
from pyinfra_agent_protocol._frames import NUMBERED, Frame, FrameType, split_frames
from pyinfra_agent_protocol._session import _RECEIVES

if TYPE_CHECKING:
    from tests.fuzz.reader import Reader

STEPS_MAX: Final = 150
RETAINED_LEAST_BYTES: Final = 2 * 1024 * 1024  # with less, two honest sessions may wait for each other
_U64: Final = 2**64 - 1


class Watched:
    """A session and what has to be true of it, looked at after every step."""

    def __init__(self, side: Side, reader: Reader, retained_max: int) -> None:
        shared = Budget(reader.choice((AGENT_BUDGET_BYTES, 0, 1_000_000)))
        self.budget = Budget(reader.choice((SESSION_BUDGET_BYTES, 0, 300_000, 2_000_000)), shared)
        self.shared = shared
        self.channels_max = reader.choice((256, 1, 2, 4))
        self.retained_max = retained_max
        self.session = Session(
            side, budget=self.budget, channels_max=self.channels_max, retained_max_bytes=retained_max
        )
        self.side = side
        # Numbered frames in the order of their first writing, and the position up to which this link has carried them.
        self.written: list[Frame] = []
        self.carried = 0
        self.halves: dict[int, Half] = {}

    @property
    def channels(self) -> dict[int, Channel]:
        return self.session._channels

    def write(self) -> bytes | None:
        """Return the next record; check that it keeps the rules that the peer holds us to."""
        session, outbox = self.session, self.session._outbox
        promised, before = session.has_data_to_send, outbox.sent
        closed = {number for number in self.halves if not session.is_open(number)}
        record = session.next_record()
        assert (record is not None) == promised, "has_data_to_send does not tell whether there is a record"
        if record is None:
            return None
        assert 0 < len(record) <= RECORD_PLAINTEXT_MAX_BYTES
        for frame in split_frames(record):
            assert frame.kind in _RECEIVES[_other(self.side)], f"{frame.kind.name} sent by the wrong side"
            if frame.kind not in NUMBERED:
                continue
            if self.carried < before:
                assert frame == self.written[self.carried], "a replayed frame is not the one that was sent first"
            else:
                self._first_time(frame, closed)
                self.written.append(frame)
            self.carried += 1
        assert self.carried == outbox.sent or session._outbox._replay
        return record

    def _first_time(self, frame: Frame, closed: set[int]) -> None:
        if self.side is Side.CONNECTOR:
            assert frame.channel not in closed, f"{frame.kind.name} sent after the channel's last frame was received"
            if frame.kind is FrameType.OPEN:
                assert frame.channel > max(self.halves, default=0)
                self.halves[frame.channel] = Half.FLOWING
                return
        half = self.halves.setdefault(frame.channel, Half.FLOWING)
        self.halves[frame.channel] = step(UP if self.side is Side.CONNECTOR else DOWN, half, frame.kind)

    def attach(self, peer_received: int) -> None:
        self.session.attach(peer_received)
        self.carried = peer_received

    def check(self) -> None:
        """Look at every number that a peer could drive out of its bounds."""
        session, outbox = self.session, self.session._outbox
        assert len(self.channels) <= self.channels_max
        grown = 0
        for channel in self.channels.values():
            receive, send = channel.receive_window, channel.send_window
            assert 0 <= receive.consumed <= receive.received <= receive.limit, "more was taken than was granted"
            assert WINDOW_INITIAL_BYTES <= receive.size <= WINDOW_MAX_BYTES
            assert receive.limit - receive.consumed <= receive.size or channel.down is Half.CLOSED
            assert 0 <= send.sent <= send.limit <= _U64, "credit is negative"
            assert channel.queued_bytes == sum(len(body) for _, _, body in channel.queue)
            grown += receive.size - WINDOW_INITIAL_BYTES
        assert self.budget.reserved_bytes == self.shared.reserved_bytes == grown
        assert grown <= min(self.budget.total_bytes, self.shared.total_bytes)
        assert outbox.retained_bytes == sum(len(kept.body) + FRAME_HEADER_BYTES for kept in outbox._retained)
        bulk = sum(
            len(kept.body) + FRAME_HEADER_BYTES
            for kept in outbox._retained
            if kept.kind in (FrameType.DATA, FrameType.END)
        )
        assert bulk <= self.retained_max + RECORD_PLAINTEXT_MAX_BYTES, "more is kept than was allowed"
        assert len(outbox._credits) + len(outbox._blocked) <= 2 * session._last_channel
        assert len(outbox._notices) <= 3

    def finish(self) -> None:
        """End the session; everything is given back."""
        self.session.close()
        assert self.budget.reserved_bytes == self.shared.reserved_bytes == 0, (
            "a closed session keeps a share of the budget"
        )
        assert not self.session.has_data_to_send


def _other(side: Side) -> Side:
    return Side.AGENT if side is Side.CONNECTOR else Side.CONNECTOR
