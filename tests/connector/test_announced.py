"""Records put together, and agents that were heard several times."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from pyinfra_agent_connector._announced import MAX_INSTANCES, Announced, Responder, merged, service_name
from pyinfra_agent_connector._dns import Address, Kind, Pointer, Question, Record, Service, Text, to_name
from pyinfra_agent_connector._interfaces import Interface
from pyinfra_agent_protocol.advert import Advert
from pyinfra_agent_protocol.keys import KeyPair, fingerprint

SERVICE = service_name("local")
WEB1 = (b"web1", *SERVICE)
SERVER = to_name("web1.local")
ADVERT = Advert(fingerprint(KeyPair.generate().public), ("web",))
ETH0 = Interface(
    "eth0",
    2,
    (ipaddress.ip_address("192.0.2.9"), ipaddress.ip_address("fe80::9")),
    (ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("fe80::/64")),
)

POINTER = Record(SERVICE, 60, Pointer(WEB1))
SRV = Record(WEB1, 60, Service(SERVER, 7963))
TXT = Record(WEB1, 60, Text(ADVERT.strings()))
A = Record(SERVER, 60, Address("192.0.2.1"))


def responder(*records):
    one = Responder(SERVICE, "eth0", ETH0)
    one.take(records, 0.01)
    return one


def test_records_make_an_agent():
    (one,) = responder(POINTER, SRV, TXT, A).announced()
    assert one == Announced("web1", "web1.local", 7963, ("192.0.2.1",), ADVERT, "", "eth0", 0.01)


def test_order_within_an_answer_does_not_matter():
    assert [*responder(A, TXT, SRV, POINTER).announced()] == [*responder(POINTER, SRV, TXT, A).announced()]


def test_what_is_missing_is_asked_for():
    one = responder(POINTER)
    assert set(one.missing) == {Question(WEB1, Kind.SRV), Question(WEB1, Kind.TXT)}
    one.take([SRV], 0.02)
    assert set(one.missing) == {Question(WEB1, Kind.TXT), Question(SERVER, Kind.A), Question(SERVER, Kind.AAAA)}
    assert one.take([TXT, A], 0.03) == set()
    assert one.missing == ()
    assert [each.seconds for each in one.announced()] == [0.01]


def test_goodbye_takes_an_agent_back():
    one = responder(POINTER, SRV, TXT, A)
    one.take([replace(POINTER, ttl=0)], 0.02)
    assert [*one.announced()] == []


@pytest.mark.parametrize(
    "record",
    [
        Record(to_name("_http._tcp.local"), 60, Pointer(WEB1)),
        Record(SERVICE, 60, Pointer(to_name("web1._http._tcp.local"))),
        Record(SERVICE, 60, Pointer(SERVICE)),
        Record(SERVICE, 60, Pointer((b"a", b"b", *SERVICE))),
    ],
)
def test_pointer_to_something_else_is_left_out(record):
    assert responder(record).instances == {}


def test_nothing_is_kept_that_no_instance_leads_to():
    one = responder(SRV, TXT, A, Record(to_name("other.local"), 60, Address("192.0.2.7")))
    assert (one.services, one.texts, one.addresses) == ({}, {}, {})


def test_source_is_bounded():
    """Ten thousand instances of one source are a few hundred, and thousands of addresses of one name a few."""
    one = responder(*(Record(SERVICE, 60, Pointer((b"x%d" % number, *SERVICE))) for number in range(10_000)))
    assert len(one.instances) == MAX_INSTANCES
    one = responder(POINTER, SRV, *(Record(SERVER, 60, Address(f"10.0.{n >> 8}.{n & 255}")) for n in range(5000)))
    assert len(one.addresses[SERVER]) == 16
    assert responder().take([POINTER], 0.0, room=0) == set()


def test_addresses_that_are_nobodys_are_left_out_and_attached_ones_are_first():
    addresses = (
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "224.0.0.1",
        "::ffff:192.0.2.1",
        "172.17.0.1",
        "2001:db8::1",
        "fe80::1",
        "192.0.2.1",
    )
    (one,) = responder(POINTER, SRV, TXT, *(Record(SERVER, 60, Address(text)) for text in addresses)).announced()
    assert one.addresses == ("192.0.2.1", "fe80::1%eth0", "172.17.0.1", "2001:db8::1")


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([POINTER, SRV, A], "no TXT record"),
        ([POINTER, SRV, Record(WEB1, 60, Text((b"x=1",))), A], "which version"),
        ([POINTER, SRV, Record(WEB1, 60, Text(replace(ADVERT, version=2).strings())), A], "version 2 of the protocol"),
        ([POINTER, SRV, TXT], "no address"),
    ],
)
def test_agent_that_is_of_no_use_says_why(records, words):
    (one,) = responder(*records).announced()
    assert words in one.problem


def test_agent_that_is_heard_twice_is_one():
    one = Announced("web1", "web1.local", 7963, ("fe80::1%eth0", "192.0.2.1"), ADVERT, "", "eth0", 0.02)
    other = replace(one, addresses=("198.51.100.1",), heard_on="eth1", seconds=0.01, instance="WEB1")
    (both,) = merged([one, other])
    assert set(both.addresses) == {"192.0.2.1", "198.51.100.1", "fe80::1%eth0"}
    assert (both.addresses[0], both.heard_on, both.seconds) == ("198.51.100.1", "eth0, eth1", 0.01)


def test_agents_of_one_name_with_two_keys_are_two():
    one = Announced("web1", "web1.local", 7963, ("192.0.2.1",), ADVERT, "", "eth0", 0.02)
    impostor = replace(one, addresses=("192.0.2.66",), advert=Advert(fingerprint(KeyPair.generate().public)))
    assert len(merged([one, impostor])) == 2
