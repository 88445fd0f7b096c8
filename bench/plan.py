"""How often each figure is measured: the short form for every day, the full one for a result to publish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from procfs import KIB, MIB

STREAM_BYTES: Final = 200 * MIB
STREAM_LINE_BYTES: Final = 64
PUT_BYTES: Final = KIB
LONG_S: Final = 300.0
ROUND_TRIP_S: Final = 0.050
BUDGET_S: Final = 10.0  # of one peer in one round of one figure; at least one sample is taken whatever it costs


@dataclass(frozen=True, slots=True)
class Effort:
    """Rounds in which the peers take turns, and samples in each; no round begins after `budget_s`."""

    rounds: int
    count: int
    budget_s: float = 20.0


ONCE: Final = Effort(1, 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """The effort for each figure. `copy` has one for each size in bytes."""

    connect: Effort
    command: Effort
    puts: Effort
    copy: dict[int, Effort]
    stream: Effort
    round_trips: Effort


SHORT: Final = Plan(
    connect=Effort(4, 3),
    command=Effort(5, 60),
    puts=Effort(4, 50),
    copy={KIB: Effort(3, 20), MIB: Effort(3, 5), 256 * MIB: Effort(4, 1)},
    stream=Effort(2, 1),
    round_trips=Effort(1, 4),
)
FULL: Final = Plan(
    connect=Effort(8, 5, LONG_S),
    command=Effort(10, 50, LONG_S),
    puts=Effort(10, 200, LONG_S),
    copy={
        KIB: Effort(8, 50, LONG_S),
        MIB: Effort(8, 10, LONG_S),
        256 * MIB: Effort(5, 1, LONG_S),
        1024 * MIB: Effort(7, 1, LONG_S),
    },
    stream=Effort(5, 1, LONG_S),
    round_trips=Effort(3, 5, LONG_S),
)
