"""Asks the directly attached links for agents: DNS-SD over multicast DNS, in one go (RFC 6762, RFC 6763).

What was heard is told with each repetition (RFC 6762 section 7.1), so on a link without loss nobody answers twice. It
ends when two repetitions have brought nothing new: after 0.6 s as a rule, and after `browse_seconds()` at the latest,
which is also how long nobody's silence is listened to. Where answers come to all and not to us alone, it takes 1.5 s at
least: whoever has just answered somebody else may do so again after a second only.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gevent import select
from gevent.lock import BoundedSemaphore

from ._announced import Announced, Responder, merged, service_name
from ._dns import BadMessage, Kind, KnownAnswer, Name, Question, parse_answer, write_query
from ._interfaces import interfaces
from ._multicast import open_sockets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._interfaces import Interface
    from ._multicast import MulticastSocket

__all__ = ["Browsed", "browse", "browse_seconds", "find_on_link"]

BROWSE_SECONDS: Final = 3.0
SECONDS_VARIABLE: Final = "PYINFRA_AGENT_BROWSE_SECONDS"
#: How long `find_on_link` believes what was heard.
FRESH_SECONDS: Final = 3.0

_DOMAIN: Final = "local"
_SERVICE: Final = service_name(_DOMAIN)

#: When the question is asked; beyond, once a second. Whoever was heard is told so and keeps silent.
_ROUND_SECONDS: Final = (0.0, 0.15, 0.35, 0.55, 0.75, 1.0, 1.3, 1.7, 2.2)
_LATER_ROUNDS_SECONDS: Final = 1.0
_QUIET_ROUNDS: Final = 2
_QUIET_SECONDS: Final = 0.2  # to answer the last of them
#: Between two of them where this process gets no processor when it should: time to answer each.
_LEAST_ROUND_SECONDS: Final = 0.15
#: A record is multicast once a second at most (RFC 6762 section 6), and answers are put off to be sent together.
_MULTICAST_SECONDS: Final = 1.5
#: After which a record that is missing is asked for, and asked for again.
_DETAIL_SECONDS: Final = (0.08, 0.25, 0.5, 1.0)
_DETAILS_IN_A_PACKET: Final = 10
_DETAILS_AT_ONCE: Final = 200

#: What is looked at and kept of a flood. A reflector for hundreds of agents needs half of what one source may say.
_MAX_SOURCE_BYTES: Final = 256 * 1024
_MAX_BYTES: Final = 8 * 1024 * 1024
_MAX_RESPONDERS: Final = 2048
_MAX_INSTANCES: Final = 4096
_BURST: Final = 16  # packets of one socket before the next one's turn
_TICK_SECONDS: Final = 0.04


@dataclass(frozen=True, slots=True)
class Browsed:
    """What the links answered.

    Attributes:
        agents: that were heard, each once.
        interfaces: that were asked.
        seconds: it took.
    """

    agents: tuple[Announced, ...]
    interfaces: tuple[Interface, ...]
    seconds: float


def browse_seconds() -> float:
    """Return how long browsing may take: `$PYINFRA_AGENT_BROWSE_SECONDS`, 0.1 to 60, else 3.

    Raises:
        ValueError: the variable is no such number.
    """
    text = os.environ.get(SECONDS_VARIABLE, "")
    if not text:
        return BROWSE_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 60.0:
        raise ValueError(f"{SECONDS_VARIABLE} is {text[:40]!r}: set it to seconds, from 0.1 to 60")
    return seconds


def browse(seconds: float | None = None) -> Browsed:
    """Ask every attached link for agents; an interface that cannot be asked is passed over.

    Args:
        seconds: after which it ends at the latest; None is `browse_seconds()`.

    Raises:
        ValueError: as `browse_seconds`.
    """
    limit = browse_seconds() if seconds is None else seconds
    asked = interfaces()
    began = time.monotonic()
    sockets: list[MulticastSocket] = []
    try:
        for interface in asked:
            sockets += open_sockets(interface)
        agents = _Browse(sockets, began, limit).run() if sockets else ()
    finally:
        for each in sockets:
            each.sock.close()
    return Browsed(agents, asked, time.monotonic() - began)


def find_on_link(name: str) -> tuple[Announced, ...]:
    """Return the agents whose instance or machine is called *name*, or that announce it as their fingerprint.

    Those whose instance has the name come first.

    Several callers share one look around, and one look is believed for `FRESH_SECONDS`.

    Raises:
        ValueError: as `browse_seconds`.
    """
    wanted = name.rstrip(".").lower().removesuffix(f".{_DOMAIN}")
    agents = [agent for agent in _look_around() if agent.addresses]
    by_instance = [agent for agent in agents if wanted in (agent.instance.lower(), agent.fingerprint)]
    by_machine = [agent for agent in agents if agent.server.lower().removesuffix(f".{_DOMAIN}") == wanted]
    return tuple(dict.fromkeys(by_instance + by_machine))


_looking: Final = BoundedSemaphore()
_looked: Final[list[tuple[float, tuple[Announced, ...]]]] = []


def _look_around() -> tuple[Announced, ...]:
    with _looking:
        if not _looked or time.monotonic() - _looked[0][0] > FRESH_SECONDS:
            agents = browse().agents
            _looked[:] = [(time.monotonic(), agents)]
        return _looked[0][1]


@dataclass
class _Detail:
    """A record that is missing: when it was noticed or asked for last, and how often it was."""

    since: float
    asked: int = 0

    def is_due(self, now: float) -> bool:
        return not self.is_given_up and now - self.since >= _DETAIL_SECONDS[self.asked]

    @property
    def is_given_up(self) -> bool:
        return self.asked >= len(_DETAIL_SECONDS)


class _Browse:
    """One look at all interfaces; *sockets* are closed by whoever opened them."""

    def __init__(self, sockets: Sequence[MulticastSocket], began: float, limit: float) -> None:
        self._sockets = sockets
        self._began = began
        self._limit = limit
        self._responders: dict[tuple[int, str], Responder] = {}
        self._bytes: dict[tuple[int, str], int] = {}
        self._total_bytes = 0
        self._heard: set[Name] = set()
        self._details: dict[tuple[int, Question], _Detail] = {}
        self._rounds = 0
        self._quiet_rounds = 0
        self._asked_at = 0.0
        self._answered_alone: set[int] = set()
        self._poll = select.poll()
        for each in sockets:
            self._poll.register(each.sock, select.POLLIN)

    def run(self) -> tuple[Announced, ...]:
        while (now := self._now()) < self._limit:
            if now >= self._round_due():
                self._ask(now)
            self._ask_details(now)
            # In this order: what came before *now* has been heard.
            if not self._listen() and self._is_over(now):
                break
        return merged(one for responder in self._responders.values() for one in responder.announced())

    def _now(self) -> float:
        return time.monotonic() - self._began

    # --- asking ---

    def _round_due(self) -> float:
        if not self._rounds:
            return 0.0
        later = self._rounds - len(_ROUND_SECONDS) + 1
        planned = _ROUND_SECONDS[self._rounds] if later <= 0 else _ROUND_SECONDS[-1] + later * _LATER_ROUNDS_SECONDS
        # The one that may be the last is listened for to the end before there is another.
        is_last = self._quiet_rounds >= _QUIET_ROUNDS
        return max(planned, self._asked_at + (_QUIET_SECONDS + 3 * _TICK_SECONDS if is_last else _LEAST_ROUND_SECONDS))

    def _ask(self, now: float) -> None:
        question = Question(_SERVICE, Kind.PTR)
        for each in self._sockets:
            known = [
                KnownAnswer(_SERVICE, ttl, target)
                for (index, _source), responder in self._responders.items()
                if index == each.interface.index
                for target, (ttl, _seconds) in responder.instances.items()
            ]
            packet = write_query([question], unicast=not each.is_shared, known=known)
            # A repetition means that something may have been lost: twice is cheap, as whoever was heard keeps silent.
            for _ in range(2 if self._rounds else 1):
                each.send(packet)
        self._asked_at = now
        self._rounds += 1
        self._quiet_rounds += 1

    def _ask_details(self, now: float) -> None:
        missing = dict.fromkeys(
            (index, question)
            for (index, _source), responder in self._responders.items()
            for question in responder.missing
        )
        self._details = {key: self._details.get(key) or _Detail(now) for key in missing}
        due: dict[int, list[Question]] = {}
        for (index, question), detail in self._details.items():
            if detail.is_due(now):
                due.setdefault(index, []).append(question)
                detail.since = now
                detail.asked += 1
        for each in self._sockets:
            questions = due.get(each.interface.index, [])[:_DETAILS_AT_ONCE]
            for start in range(0, len(questions), _DETAILS_IN_A_PACKET):
                part = questions[start : start + _DETAILS_IN_A_PACKET]
                each.send(write_query(part, unicast=not each.is_shared))

    # --- listening ---

    def _listen(self) -> bool:
        """Take what comes within a tick; return whether anything did."""
        self._poll.poll(_TICK_SECONDS * 1000)
        has_heard = False
        # Each of them, whatever was reported: a poll whose time was up may have missed one.
        for each in self._sockets:
            for _ in range(_BURST):
                received = each.receive()
                if received is None:
                    break
                has_heard = True
                self._take(each, *received)
                if self._now() >= self._limit:
                    return True
        return has_heard

    def _take(self, heard_by: MulticastSocket, data: bytes, source: str) -> None:
        interface = heard_by.interface
        key = interface.index, source
        spent = self._bytes.get(key, 0) + len(data)
        self._total_bytes += len(data)
        if (
            not data
            or spent > _MAX_SOURCE_BYTES
            or self._total_bytes > _MAX_BYTES
            or (key not in self._bytes and len(self._bytes) >= _MAX_RESPONDERS)
        ):
            return
        self._bytes[key] = spent
        try:
            answer = parse_answer(data)
        except BadMessage:
            return
        if answer is None or answer.code:
            return
        responder = self._responders.get(key)
        if responder is None:
            responder = Responder(_SERVICE, interface.name, interface)
        room = _MAX_INSTANCES - sum(len(each.instances) for each in self._responders.values())
        new = responder.take(answer.records, self._now(), room) - self._heard
        if new:
            # By its name alone: the same one comes from a second address of its machine, and on a second interface.
            self._heard |= new
            self._quiet_rounds = 0
        if responder.instances:
            self._responders[key] = responder
            if not heard_by.is_shared:
                self._answered_alone.add(interface.index)

    def _is_over(self, now: float) -> bool:
        """Nobody was heard: go on to the end. Somebody was: until repetitions bring nothing, and nothing is missing."""
        return (
            bool(self._responders)
            and self._quiet_rounds >= _QUIET_ROUNDS
            and now - self._asked_at >= _QUIET_SECONDS
            and (now >= _MULTICAST_SECONDS or {index for index, _source in self._responders} <= self._answered_alone)
            and all(detail.is_given_up for detail in self._details.values())
        )
