"""Listens on the attached links for agents that arrive and say goodbye, and asks for nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from gevent import select

from ._announced import service_name
from ._dns import BadMessage, Pointer, label_text, parse_answer
from ._interfaces import interfaces
from ._multicast import open_sockets

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._interfaces import Interface
    from ._multicast import MulticastSocket

__all__ = ["Arrivals"]

_SERVICE: Final = service_name("local")
#: An agent announces itself in several packets, and a rack that gets its power back in many.
_SETTLE_SECONDS: Final = 0.3
_BURST: Final = 64
_MAX_NAMES: Final = 4096


class Arrivals:
    """Keeps its sockets open between calls of `wait`, so that nothing is missed; a context manager.

    Attributes:
        goodbyes: names of instances that took their announcement back since `wait` was called last.
    """

    def __init__(self) -> None:
        self.goodbyes: set[str] = set()
        self._heard: set[str] = set()
        self._asked: tuple[Interface, ...] = ()
        self._sockets: list[MulticastSocket] = []

    def __enter__(self) -> Arrivals:
        self._follow_interfaces()
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def wait(self, seconds: float) -> None:
        """Return soon after somebody arrives or says goodbye, or after *seconds*.

        Each name counts once until it says goodbye, so repetitions and floods do not keep the caller busy.
        """
        self._follow_interfaces()
        self.goodbyes = set()
        deadline = time.monotonic() + seconds
        has_news = False
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([each.sock for each in self._sockets], [], [], left)
            if self._take(each for each in self._sockets if each.sock in ready) and not has_news:
                has_news = True
                deadline = min(deadline, time.monotonic() + _SETTLE_SECONDS)

    def _take(self, ready: Iterable[MulticastSocket]) -> bool:
        has_news = False
        for each in ready:
            for _ in range(_BURST):
                received = each.receive()
                if received is None:
                    break
                has_news |= self._hear(received[0])
        return has_news

    def _hear(self, data: bytes) -> bool:
        try:
            answer = parse_answer(data) if data else None
        except BadMessage:
            return False
        has_news = False
        for record in answer.records if answer is not None else ():
            if not isinstance(record.data, Pointer) or record.name != _SERVICE or record.data.target[1:] != _SERVICE:
                continue
            name = label_text(record.data.target[0])
            if not record.ttl:
                has_news |= name not in self.goodbyes
                if len(self.goodbyes) < _MAX_NAMES:
                    self.goodbyes.add(name)
                self._heard.discard(name)
            elif name not in self._heard and len(self._heard) < _MAX_NAMES:
                self._heard.add(name)
                has_news = True
        return has_news

    def _follow_interfaces(self) -> None:
        found = interfaces()
        if found != self._asked:
            self._close()
            self._asked = found
            self._sockets = [each for one in found for each in open_sockets(one) if _keep(each)]

    def _close(self) -> None:
        for each in self._sockets:
            each.sock.close()
        self._sockets, self._asked = [], ()


def _keep(each: MulticastSocket) -> bool:
    if not each.is_shared:
        each.sock.close()
    return each.is_shared
