"""Looking around, on sockets whose neighbours do as they are told. tests/discovery has real links."""

from __future__ import annotations

import ipaddress
import itertools
import socket as plain_socket
import struct
import time

import dns.message
import gevent
import pytest
from gevent import socket

from pyinfra_agent_connector import _mdns, _on_link, _opening
from pyinfra_agent_connector._dns import Kind, to_name, write_query
from pyinfra_agent_connector._interfaces import Interface, interfaces
from pyinfra_agent_connector._mdns import Browsed, browse, browse_seconds, find_on_link
from pyinfra_agent_connector._opening import Endpoint
from pyinfra_agent_protocol.advert import Advert
from pyinfra_agent_protocol.keys import KeyPair, fingerprint
from tests.connector.helpers import LOCALHOST, FakeAgent, free_port, serve_quietly

SERVICE = to_name("_pyinfra-agent._tcp.local")
PRINT = fingerprint(KeyPair.generate().public)
ETH0 = Interface("eth0", 1, (ipaddress.ip_address("192.0.2.9"),), (ipaddress.ip_network("192.0.2.0/24"),))


def name(labels):
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def records(label, *kinds):
    """Return the records of these *kinds* of an agent at 192.0.2.1."""
    instance = (label, *SERVICE)
    server = (label, b"local")
    text = b"".join(bytes([len(string)]) + string for string in Advert(PRINT).strings())
    made = {
        Kind.PTR: (name(SERVICE), name(instance)),
        Kind.SRV: (name(instance), struct.pack(">HHH", 0, 0, 7963) + name(server)),
        Kind.TXT: (name(instance), text),
        Kind.A: (name(server), bytes([192, 0, 2, 1])),
    }
    return [
        made[kind][0] + struct.pack(">HHIH", kind, 0x8001, 60, len(made[kind][1])) + made[kind][1] for kind in kinds
    ]


def message(parts):
    return struct.pack(">HHHHHH", 0, 0x8400, 0, len(parts), 0, 0) + b"".join(parts)


class Neighbours:
    """Stands for a socket on a link.

    *answer(query, number)* returns packets, each with its source and, if it does not come at once, after what time.
    """

    interface = ETH0

    def __init__(self, answer, is_shared=False):
        self._answer = answer
        self.is_shared = is_shared
        self.sock, self.bell = socket.socketpair()
        self.sock.setblocking(False)
        self.waiting = []
        self.queries = []

    def send(self, packet):
        self.queries.append(dns.message.from_wire(packet))
        for data, source, *seconds in self._answer(self.queries[-1], len(self.queries)):
            if seconds:
                gevent.spawn_later(seconds[0], self._hear, data, source)
            else:
                self._hear(data, source)

    def _hear(self, *packet):
        if not self.waiting:
            self.bell.send(b"!")
        self.waiting.append(packet)

    def receive(self):
        if not self.waiting:
            return None
        if len(self.waiting) == 1:
            self.sock.recv(1)
        return self.waiting.pop(0)


@pytest.fixture
def look(monkeypatch):
    """Return a function that looks around among neighbours who answer as they are told."""
    opened = []

    def look(answer, seconds=3.0, **options):
        neighbours = Neighbours(answer, **options)
        monkeypatch.setattr(_mdns, "interfaces", lambda: (ETH0,))
        monkeypatch.setattr(_mdns, "open_sockets", lambda interface: [neighbours])
        opened.append(neighbours)
        return browse(seconds), neighbours

    yield look
    for neighbours in opened:
        neighbours.bell.close()


WHOLE = (Kind.PTR, Kind.SRV, Kind.TXT, Kind.A)


def asks(query, kind):
    return any(question.rdtype == kind for question in query.question)


def test_browse_ends_when_repetitions_bring_nothing_new(look):
    """And tells in them what it has heard, so that nobody says it twice."""
    found, neighbours = look(lambda query, number: [(message(records(b"web1", *WHOLE)), "192.0.2.1")])
    assert [agent.instance for agent in found.agents] == ["web1"]
    assert 0.4 < found.seconds < 0.9
    assert [len(query.answer) for query in neighbours.queries] == [0, 1, 1, 1, 1]
    assert all(int(query.question[0].rdclass) == 0x8001 for query in neighbours.queries)


def test_browse_asks_for_records_that_are_missing(look):
    def answer(query, number):
        kinds = [kind for kind in WHOLE if asks(query, kind)]
        return [(message(records(b"web1", *kinds)), "192.0.2.1")] if kinds else []

    found, _ = look(answer)
    assert [(agent.addresses, agent.problem) for agent in found.agents] == [(("192.0.2.1",), "")]
    assert found.seconds < 1.2


def test_browse_does_not_wait_for_records_that_never_come(look):
    """Nor ask for them again and again."""
    found, neighbours = look(lambda query, number: [(message(records(b"web1", Kind.PTR)), "192.0.2.1")])
    assert found.agents == ()
    assert found.seconds < 2.9
    assert sum(asks(query, Kind.SRV) for query in neighbours.queries) <= 4


def test_browse_goes_on_while_something_new_is_heard(look):
    """Which means that something was lost before."""

    def answer(query, number):
        return [(message(records(b"web%d" % number, *WHOLE)), "192.0.2.1")] if number <= 6 else []

    found, _ = look(answer)
    assert len(found.agents) == 6
    assert found.seconds > 0.9


def test_browse_that_hears_only_what_is_said_to_all_waits_for_those_who_have_just_spoken(look):
    """They may say it to all once a second only, and somebody else may have asked just before."""

    def answer(query, number):
        late = [(message(records(b"late", *WHOLE)), "192.0.2.2", 1.3)]
        return [(message(records(b"web1", *WHOLE)), "192.0.2.1"), *late] if number == 1 else []

    found, _ = look(answer, is_shared=True)
    assert [agent.instance for agent in found.agents] == ["late", "web1"]
    assert 1.5 <= found.seconds < 2.6


def test_browse_in_a_process_that_gets_no_processor_gives_others_time_to_answer(look):
    """The repetitions that were due meanwhile do not come all at once."""

    def answer(query, number):
        if number == 1:
            time.sleep(0.7)
            return [(message(records(b"web1", *WHOLE)), "192.0.2.1")]
        return [(message(records(b"web2", *WHOLE)), "192.0.2.2", 0.1)]

    assert [agent.instance for agent in look(answer)[0].agents] == ["web1", "web2"]


def test_browse_listens_to_the_end_where_nobody_answers(look):
    found, _ = look(lambda query, number: [], seconds=0.3)
    assert found.agents == ()
    assert 0.3 <= found.seconds < 0.6


def test_browse_looks_at_no_more_of_one_source_than_it_may_say(look, monkeypatch):
    """And goes on listening to the others."""
    monkeypatch.setattr(_mdns, "_MAX_SOURCE_BYTES", 20_000)
    parsed = []
    parse = _mdns.parse_answer
    monkeypatch.setattr(_mdns, "parse_answer", lambda data: parsed.append(len(data)) or parse(data))
    junk = message(records(b"junk", Kind.PTR) * 100)

    def answer(query, number):
        if number > 1:
            return []
        return [*[(junk, "192.0.2.66")] * 50, (message(records(b"web1", *WHOLE)), "192.0.2.1")]

    found, _ = look(answer)
    assert [agent.instance for agent in found.agents] == ["web1"]
    assert sum(parsed) < 21_000


def test_browse_takes_no_more_sources_than_it_can_hold(look, monkeypatch):
    monkeypatch.setattr(_mdns, "_MAX_RESPONDERS", 10)
    monkeypatch.setattr(_mdns, "_MAX_INSTANCES", 5)

    def answer(query, number):
        return [(message(records(b"web%d" % n, *WHOLE)), f"192.0.2.{n}") for n in range(100)] if number == 1 else []

    assert len(look(answer)[0].agents) == 5


@pytest.mark.parametrize(
    "packet", [b"", b"junk", b"\xff" * 100, write_query([]), message([])[:3] + b"\x03" + b"\0" * 8]
)
def test_browse_passes_over_packets_that_are_no_answers(look, packet):
    found, _ = look(lambda query, number: [(packet, "192.0.2.1")], seconds=0.2)
    assert found.agents == ()


def test_browse_lets_others_run(look):
    """Also while somebody floods the link."""
    turns = []

    def count():
        while True:
            turns.append(time.monotonic())
            gevent.sleep(0.01)

    counter = gevent.spawn(count)
    junk = message(records(b"x", Kind.PTR) * 100)
    look(lambda query, number: [(junk, f"192.0.2.{n}") for n in range(200 if number == 1 else 0)], 0.5)
    counter.kill()
    assert max(after - before for before, after in itertools.pairwise(turns)) < 0.4


@pytest.mark.parametrize(("text", "seconds"), [("", 3.0), ("0.5", 0.5), ("60", 60.0)])
def test_browsing_time_is_the_users(monkeypatch, text, seconds):
    monkeypatch.setenv("PYINFRA_AGENT_BROWSE_SECONDS", text)
    assert browse_seconds() == seconds


@pytest.mark.parametrize("text", ["x", "0", "-1", "61", "nan", "inf"])
def test_browsing_time_that_makes_no_sense_is_refused(monkeypatch, text):
    monkeypatch.setenv("PYINFRA_AGENT_BROWSE_SECONDS", text)
    with pytest.raises(ValueError, match=r"from 0\.1 to 60"):
        browse_seconds()


def test_interfaces_leave_loopback_out():
    assert not any(address.is_loopback for interface in interfaces() for address in interface.addresses)
    assert ETH0.is_attached(ipaddress.ip_address("192.0.2.77"))
    assert str(ETH0) == "eth0 (192.0.2.0/24)"


# --- one name ---


@pytest.fixture
def announced(monkeypatch, look):
    """Let web1 be announced, and count how often somebody looks."""
    found, _ = look(lambda query, number: [(message(records(b"web1", *WHOLE)), "192.0.2.1")])
    looks = []

    def browse_now(seconds=None):
        looks.append(1)
        gevent.sleep(0.01)
        return Browsed(found.agents, (ETH0,), 0.01)

    monkeypatch.setattr(_mdns, "browse", browse_now)
    monkeypatch.setattr(_mdns, "_looked", [])
    return looks


@pytest.mark.parametrize("text", ["web1", "WEB1.local", "web1.local.", PRINT])
def test_agent_is_found_by_its_name_or_its_key(announced, text):
    assert [agent.addresses for agent in find_on_link(text)] == [("192.0.2.1",)]
    assert find_on_link("web2") == ()


def test_many_who_ask_at_once_share_one_look(announced, monkeypatch):
    gevent.joinall([gevent.spawn(find_on_link, "web1") for _ in range(20)], raise_error=True)
    assert len(announced) == 1
    monkeypatch.setattr(_mdns, "FRESH_SECONDS", 0.0)
    find_on_link("web1")
    assert len(announced) == 2


def test_name_that_dns_does_not_have_is_asked_for_on_the_links(monkeypatch):
    """And the agent's own port counts, where the usual one was meant."""
    with FakeAgent(serve_quietly) as agent:
        monkeypatch.setattr(_opening, "addresses_on_link", lambda name, port: [(2, 1, 6, "", (LOCALHOST, agent.port))])
        monkeypatch.setattr(_opening.socket, "getaddrinfo", _refuse)
        for text in ("web1", "web1.local"):
            _opening._connect(Endpoint(text, 7963), 5.0, time.monotonic() + 5).close()


def _refuse(*arguments, **more):
    raise plain_socket.gaierror(-2, "Name or service not known")


def test_name_of_dns_is_not_asked_for_on_the_links(monkeypatch):
    asked = []
    monkeypatch.setattr(_opening, "addresses_on_link", lambda name, port: asked.append(name) or [])
    monkeypatch.setattr(_opening.socket, "getaddrinfo", _refuse)
    for text, words in (("web1.example.com", "not known$"), ("web1", "no agent on its links announces that name$")):
        with pytest.raises(_opening.Unreachable, match=words):
            _opening._connect(Endpoint(text, 7963), 5.0, time.monotonic() + 5)
    assert asked == ["web1"]


def test_agent_that_is_not_there_any_more_is_asked_for_by_its_key(monkeypatch):
    asked = []
    with FakeAgent(serve_quietly) as agent:

        def find(alias, port):
            asked.append(alias)
            return [(2, 1, 6, "", (LOCALHOST, agent.port))]

        monkeypatch.setattr(_opening, "addresses_on_link", find)
        _opening._connect(Endpoint(LOCALHOST, free_port(), PRINT), 5.0, time.monotonic() + 5).close()
        _opening._connect(Endpoint(LOCALHOST, agent.port, PRINT), 5.0, time.monotonic() + 5).close()
    assert asked == [PRINT]
    monkeypatch.setattr(_opening, "addresses_on_link", lambda alias, port: [])
    with pytest.raises(_opening.Unreachable, match="nothing listens"):
        _opening._connect(Endpoint(LOCALHOST, free_port(), PRINT), 5.0, time.monotonic() + 5)


def test_addresses_have_the_agents_own_port_where_the_usual_one_is_meant(announced):
    assert _on_link.addresses_on_link("web1", 7963)[0][4] == ("192.0.2.1", 7963)
    assert _on_link.addresses_on_link("web1", 8000)[0][4] == ("192.0.2.1", 8000)
    assert not _on_link.may_be_on_link("web1.example.com")
    assert not _on_link.may_be_on_link("2001:db8::1")
