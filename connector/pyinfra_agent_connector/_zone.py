"""Asks DNS servers for the agents of a zone (RFC 6763), beyond the links that multicast reaches.

The agents are the PTR records of `_pyinfra-agent._tcp` in the zone itself, and in those domains inside it that
`b._dns-sd._udp` names for browsing (section 11). A message has 65,535 bytes, which is room for some 2,800 agents of one
domain; larger fleets use several.

One question for everything that an instance has (ANY) spares half of the questions; where a server does not answer
those (RFC 8482), each record is asked for.
"""

from __future__ import annotations

import contextlib
import secrets
import socket as plain_socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gevent import select, socket

from pyinfra_agent_protocol.advert import SERVICE

from ._announced import Announced, Responder, merged
from ._dns import (
    Answer,
    BadMessage,
    Kind,
    Name,
    Pointer,
    Question,
    Record,
    parse_answer,
    to_name,
    wire_size,
    write_query,
)
from ._interfaces import parse_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ZoneError", "Zoned", "browse_zone", "name_servers"]

ZONE_SECONDS: Final = 10.0
MAX_AGENTS: Final = 20_000
MAX_QUESTIONS: Final = 2 * MAX_AGENTS
MAX_DOMAINS: Final = 1024

_RESOLV_CONF: Final = "/etc/resolv.conf"
_MAX_SERVERS: Final = 3  # resolv.conf(5)
_PORT: Final = 53
_AT_ONCE: Final = 100
_BURST: Final = 64  # answers of one server before the next one's turn
_TRY_SECONDS: Final = (0.4, 0.8, 1.6, 1.6)
_MAX_UDP_BYTES: Final = 65_535
_RECEIVE_BUFFER_BYTES: Final = 1024 * 1024
_NO_ERROR: Final = 0
_NO_SUCH_NAME: Final = 3
_LENGTH: Final = struct.Struct(">H")


class ZoneError(Exception):
    """A zone cannot be browsed; the text says what was asked and what came of it."""


@dataclass(frozen=True, slots=True)
class Zoned:
    """What a zone says.

    Attributes:
        agents: that it lists; their addresses are left to be looked up when they are needed.
        servers: that were asked.
        seconds: it took.
    """

    agents: tuple[Announced, ...]
    servers: tuple[str, ...]
    seconds: float


def name_servers(path: str = _RESOLV_CONF) -> tuple[str, ...]:
    """Return the addresses of the DNS servers that this machine uses; its own if *path* names none (resolv.conf(5))."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            words = [line.split() for line in file.read(64 * 1024).splitlines()]
    except OSError:
        words = []
    named = [word[1] for word in words if len(word) > 1 and word[0] == "nameserver" and parse_address(word[1])]
    return tuple(named[:_MAX_SERVERS]) or ("127.0.0.1",)


def browse_zone(zone: str, *, servers: Sequence[str] | None = None, seconds: float = ZONE_SECONDS) -> Zoned:
    """Ask for the agents that *zone* lists.

    Args:
        zone: a domain.
        servers: addresses of DNS servers; None are this machine's.
        seconds: after which it ends; what did not arrive until then is missing.

    Raises:
        ZoneError: no server answers, or none will for this zone.
    """
    began = time.monotonic()
    asked = tuple(servers) if servers is not None else name_servers()
    with _Asker(asked, began + seconds) as asker:
        services = _services(asker, zone)
        if not services:
            raise ZoneError(f"no DNS server answers for {zone}: asked {', '.join(asked)}{asker.complaint}")
        responders = [Responder(service, zone, limit=MAX_AGENTS) for service in services]
        pointers = asker.ask(Question(service, Kind.PTR) for service in services)
        for responder in responders:
            answer = pointers.get(Question(responder.service, Kind.PTR))
            responder.take(answer.records if answer is not None else (), time.monotonic() - began)
        _learn(responders, asker, Kind.ANY)
        _learn(responders, asker, None)
    agents = merged(one for responder in responders for one in responder.announced())
    return Zoned(agents, asked, time.monotonic() - began)


def _services(asker: _Asker, zone: str) -> list[Name]:
    """Return the names to browse: of the zone itself, and of the domains within it that it names for browsing.

    There is none if nobody answers.
    """
    top = to_name(zone)
    question = Question(to_name(f"b._dns-sd._udp.{zone}"), Kind.PTR)
    answer = asker.ask([question]).get(question)
    if answer is None:
        return []
    domains = {top: None}
    for record in answer.records:
        # Who is asked for one zone does not send us to another.
        if isinstance(record.data, Pointer) and record.name == question.name and record.data.target[-len(top) :] == top:
            domains[record.data.target] = None
    prefix = to_name(SERVICE)
    return [prefix + domain for domain in list(domains)[:MAX_DOMAINS] if _fits(prefix, domain)]


def _fits(prefix: Name, domain: Name) -> bool:
    # RFC 1035 section 2.3.4, with room for an instance's label of 63 bytes.
    return wire_size(prefix + domain) + 64 <= 255


def _learn(responders: Sequence[Responder], asker: _Asker, kind: Kind | None) -> None:
    """Ask for records of *kind* of every instance; None asks for each record that is missing."""
    questions = [
        (number, question)
        for number, responder in enumerate(responders)
        for question in (
            responder.missing if kind is None else (Question(instance, kind) for instance in responder.instances)
        )
    ][:MAX_QUESTIONS]
    answers = asker.ask(question for _, question in questions)
    records: list[list[Record]] = [[] for _ in responders]
    for number, question in questions:
        if question in answers:
            records[number].extend(answers[question].records)
    for responder, learned in zip(responders, records, strict=True):
        responder.take(learned, 0.0)


@dataclass
class _Pending:
    question: Question
    tries: int = 0
    due: float = 0.0


class _Asker:
    """Asks many questions at once, by UDP, and by TCP what does not fit; servers take turns as they fail."""

    def __init__(self, servers: Sequence[str], deadline: float) -> None:
        self._servers = servers
        self._deadline = deadline
        self._sockets: dict[str, Any] = {}
        self._poll = select.poll()
        self._refusals: dict[str, int] = {}

    def __enter__(self) -> _Asker:
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in self._sockets.values():
            sock.close()

    @property
    def complaint(self) -> str:
        """What servers answered that did not answer the question, for the end of a sentence."""
        return "".join(f"; {server} answered with error {code}" for server, code in self._refusals.items())

    def ask(self, questions: Iterable[Question]) -> dict[Question, Answer]:
        """Return the answers that came in time; names that do not exist have one without records."""
        waiting = deque(_Pending(question) for question in dict.fromkeys(questions))
        pending: dict[int, _Pending] = {}
        answers: dict[Question, Answer] = {}
        while (waiting or pending) and (now := time.monotonic()) < self._deadline:
            for identifier in [identifier for identifier, each in pending.items() if each.due <= now]:
                waiting.append(pending.pop(identifier))
            while waiting and len(pending) < _AT_ONCE:
                self._send(waiting.popleft(), pending, now)
            if pending:
                self._receive(pending, answers)
        return answers

    def _send(self, each: _Pending, pending: dict[int, _Pending], now: float) -> None:
        if each.tries >= len(_TRY_SECONDS):
            return
        server = self._servers[each.tries % len(self._servers)]
        each.due = now + _TRY_SECONDS[each.tries]
        each.tries += 1
        identifier = 1 + secrets.randbelow(65535)
        while identifier in pending:
            identifier = 1 + secrets.randbelow(65535)
        pending[identifier] = each
        with contextlib.suppress(OSError):  # then its next try is with another server
            self._socket(server).send(write_query([each.question], identifier=identifier, recursion=True))

    def _socket(self, server: str) -> Any:  # noqa: ANN401 - gevent has no types
        if server not in self._sockets:
            sock = socket.socket(_family(server), plain_socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            sock.connect((server, _PORT))
            self._poll.register(sock, select.POLLIN)
            self._sockets[server] = sock
        return self._sockets[server]

    def _receive(self, pending: dict[int, _Pending], answers: dict[Question, Answer]) -> None:
        """Take the answers that are there, or wait for one until the next try is due."""
        due = min(min(each.due for each in pending.values()), self._deadline)
        milliseconds = max(1.0, (due - time.monotonic()) * 1000)
        ready = {descriptor for descriptor, _ in self._poll.poll(milliseconds)}
        for server, sock in self._sockets.items():
            if sock.fileno() in ready:
                for _ in range(_BURST):
                    try:
                        answer = parse_answer(sock.recv(_MAX_UDP_BYTES))
                    except BadMessage:
                        continue
                    except OSError:
                        break
                    if answer is not None:
                        self._take(server, answer, pending, answers)

    def _take(self, server: str, answer: Answer, pending: dict[int, _Pending], answers: dict[Question, Answer]) -> None:
        identifier = answer.identifier
        each = pending.get(identifier)
        if each is None or each.question not in answer.questions:
            return
        if answer.is_truncated:
            answer = self._ask_by_tcp(server, each.question) or answer
        if answer.code in (_NO_ERROR, _NO_SUCH_NAME):
            answers[each.question] = answer
            del pending[identifier]
        else:
            self._refusals[server] = answer.code
            each.due = 0.0  # at once, by another server

    def _ask_by_tcp(self, server: str, question: Question) -> Answer | None:
        sock = socket.socket(_family(server), plain_socket.SOCK_STREAM)
        try:
            sock.settimeout(max(0.001, self._deadline - time.monotonic()))
            sock.connect((server, _PORT))
            query = write_query([question], identifier=1, recursion=True)
            sock.sendall(_LENGTH.pack(len(query)) + query)
            (length,) = _LENGTH.unpack(_read_exactly(sock, _LENGTH.size))
            return parse_answer(_read_exactly(sock, length))
        except (OSError, BadMessage):
            return None
        finally:
            sock.close()


def _read_exactly(sock: Any, size: int) -> bytes:  # noqa: ANN401
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ConnectionError("the server hung up")
        data += more
    return data


def _family(server: str) -> int:
    return plain_socket.AF_INET6 if ":" in server else plain_socket.AF_INET
