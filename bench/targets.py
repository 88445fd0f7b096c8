"""What the agent is meant to reach against pyinfra's SSH connector, and whether it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from figures import Section
from peers import REFERENCE
from tables import number, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

AGENT: Final = "@agent"
ROUND_TRIP_TOLERANCE: Final = 0.25  # scheduling and the wire's own time; a needless round trip would add 1


@dataclass(frozen=True, slots=True)
class Speed:
    """The agent's median time is at most 1/`factor` of the reference's."""

    value: str
    title: str
    factor: float

    def row(self, values: Mapping[str, Mapping[str, float]]) -> list[str] | None:
        measured = values.get(self.value, {})
        if AGENT not in measured or REFERENCE not in measured:
            return None
        reached = measured[REFERENCE] / measured[AGENT]
        return [
            self.title,
            f"{self.factor:g} times faster",
            f"{number(reached)} times",
            _verdict(reached >= self.factor),
        ]


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """The agent takes this many round trips."""

    step: str
    title: str
    count: int

    def row(self, values: Mapping[str, Mapping[str, float]]) -> list[str] | None:
        measured = values.get(f"round trips: {self.step}", {}).get(AGENT)
        if measured is None:
            return None
        met = measured <= self.count + ROUND_TRIP_TOLERANCE
        return [self.title, _trips(str(self.count)), _trips(number(measured)), _verdict(met)]


@dataclass(frozen=True, slots=True)
class Bound:
    """The agent's value is at least, or at most, this; no other peer is asked."""

    value: str
    title: str
    limit: float
    unit: str
    at_least: bool

    def row(self, values: Mapping[str, Mapping[str, float]]) -> list[str] | None:
        measured = values.get(self.value, {}).get(AGENT)
        if measured is None:
            return None
        met = measured >= self.limit if self.at_least else measured <= self.limit
        words = "at least" if self.at_least else "at most"
        return [self.title, f"{words} {self.limit:g} {self.unit}", f"{number(measured)} {self.unit}", _verdict(met)]


TARGETS: Final[tuple[Speed | RoundTrips | Bound, ...]] = (
    Speed("connect and command", "cold connect and first `true`", 6),
    Speed("command", "`true` on a warm connection", 20),
    Speed("put 256 MiB", "put of 256 MiB", 3),
    Speed("get 256 MiB", "get of 256 MiB", 3),
    Bound("stream ended: MB/s", "output of 200 MiB", 100, "MB/s", at_least=True),
    Bound("stream ended: peak MiB", "output of 200 MiB: controller's peak", 350, "MiB", at_least=False),
    RoundTrips("connect", "connect()", 3),
    RoundTrips("first command", "first command after it", 1),
    RoundTrips("command", "command", 1),
    RoundTrips("first put", "first put of 1 KiB", 1),
    RoundTrips("get", "get of 1 KiB", 1),
)


def verdicts(sections: Iterable[Section]) -> Section | None:
    """The targets that these sections tell about; None if there are none."""
    values = {name: found for section in sections for name, found in section.values.items()}
    rows = [row for target in TARGETS if (row := target.row(values)) is not None]
    if not rows:
        return None
    return Section(f"Targets, {AGENT} against {REFERENCE}", table(["what", "target", "measured", "met"], rows))


def _verdict(met: bool) -> str:
    return "yes" if met else "NO"


def _trips(count: str) -> str:
    return f"{count} round trip{'' if count == '1' else 's'}"
