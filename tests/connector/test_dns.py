"""DNS messages: what is written, what is read, and what somebody may have made up."""

from __future__ import annotations

import struct
import time

import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyinfra_agent_connector._dns import (
    Address,
    BadMessage,
    Kind,
    KnownAnswer,
    Pointer,
    Question,
    Record,
    Service,
    Text,
    label_text,
    name_text,
    parse_answer,
    to_name,
    write_query,
)

SERVICE = to_name("_pyinfra-agent._tcp.local")
WEB1 = (b"web1", *SERVICE)
FLUSH = 0x8000


def header(questions=0, answers=0, flags=0x8400):
    return struct.pack(">HHHHHH", 0, flags, questions, answers, 0, 0)


def wire_name(name):
    return b"".join(bytes([len(label)]) + label for label in name) + b"\0"


def record(name, kind, data, *, rdclass=1 | FLUSH, ttl=120):
    """Return a record as multicast DNS has it: with the cache-flush bit in its class."""
    name = name if isinstance(name, bytes) else wire_name(name)
    return name + struct.pack(">HHIH", kind, rdclass, ttl, len(data)) + data


def answered(*records):
    return parse_answer(header(answers=len(records)) + b"".join(records)).records


# --- questions, read by dnspython ---


def test_query_is_read_by_others():
    """What dnspython reads are the questions, the bit that wants unicast, and the EDNS of a question for a server."""
    message = dns.message.from_wire(write_query([Question(SERVICE, Kind.PTR), Question(WEB1, Kind.SRV)], unicast=True))
    assert [(str(each.name), each.rdtype, int(each.rdclass)) for each in message.question] == [
        ("_pyinfra-agent._tcp.local.", dns.rdatatype.PTR, 0x8001),
        ("web1._pyinfra-agent._tcp.local.", dns.rdatatype.SRV, 0x8001),
    ]
    message = dns.message.from_wire(write_query([Question(SERVICE, Kind.PTR)], identifier=77, recursion=True))
    assert (message.id, message.edns, message.payload, bool(message.flags & dns.flags.RD)) == (77, 0, 1232, True)


def test_query_tells_what_is_known_as_far_as_it_fits():
    known = [KnownAnswer(SERVICE, 60, (b"agent%d" % number, *SERVICE)) for number in range(500)]
    wire = write_query([Question(SERVICE, Kind.PTR)], known=known)
    assert len(wire) <= 1400
    (told,) = dns.message.from_wire(wire).answer
    assert 40 < len(told) < 500
    assert told.ttl == 60
    assert str(told[0].target) == "agent0._pyinfra-agent._tcp.local."


# --- answers, written by dnspython ---


def test_answer_of_others_is_read():
    """With compressed names and records of types that are of no use here."""
    name = dns.name.from_text("web1._pyinfra-agent._tcp.local.")
    message = dns.message.make_response(dns.message.make_query("_pyinfra-agent._tcp.local.", "PTR"))
    for owner, kind, text in (
        ("_pyinfra-agent._tcp.local.", "PTR", str(name)),
        (str(name), "SRV", "0 0 7963 Web1.local."),
        (str(name), "TXT", '"v=1" "os=x y"'),
        (str(name), "NSEC", "web1.local. A TXT"),
        ("web1.local.", "A", "192.0.2.1"),
        ("web1.local.", "AAAA", "2001:DB8::1"),
        ("web1.local.", "HINFO", '"a" "b"'),
    ):
        message.answer.append(dns.rrset.from_text(owner, 120, "IN", kind, text))
    answer = parse_answer(message.to_wire())
    assert answer.questions == (Question(SERVICE, Kind.PTR),)
    assert not answer.is_truncated
    assert [each.data for each in answer.records] == [
        Pointer(WEB1),
        Service((b"web1", b"local"), 7963),
        Text((b"v=1", b"os=x y")),
        Address("192.0.2.1"),
        Address("2001:db8::1"),
    ]


def test_answer_with_cache_flush_bits_is_read():
    """The bit is in the class of most records of multicast DNS."""
    (one,) = answered(record(WEB1, Kind.SRV, struct.pack(">HHH", 0, 0, 7963) + wire_name((b"web1", b"local"))))
    assert one == Record(WEB1, 120, Service((b"web1", b"local"), 7963))


def test_names_are_equal_in_any_case():
    (one,) = answered(record((b"WEB1", b"_PYINFRA-agent", b"_tcp", b"LOCAL"), Kind.TXT, b"\0"))
    assert one.name == WEB1


def test_question_is_no_answer():
    assert parse_answer(write_query([Question(SERVICE, Kind.PTR)])) is None


# --- what somebody may have made up ---


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 11,
        header(answers=1),
        header(answers=1) + b"\xc0\x0c" + struct.pack(">HHIH", 12, 1, 0, 2) + b"\xc0\x0c",
        header(answers=1) + b"\xc0\xff" + struct.pack(">HHIH", 16, 1, 0, 1) + b"\0",
        header(answers=1) + record(WEB1, Kind.PTR, b"\xc0\xff"),
        header(answers=1) + record(b"\x01a\xc0\x0c", Kind.TXT, b"\0"),
        header(answers=1) + record(b"\x41" + b"a" * 65 + b"\0", Kind.TXT, b"\0"),
        header(answers=1) + record((b"a" * 63,) * 5, Kind.TXT, b"\0"),
        header(answers=1) + record(WEB1, Kind.TXT, b"\0")[:-1],
        header(answers=60_000),
        header(questions=20),
    ],
)
def test_message_that_is_none_is_refused(data):
    with pytest.raises(BadMessage):
        parse_answer(data)


def test_record_that_makes_no_sense_is_left_out():
    """And the others count."""
    found = answered(
        record(WEB1, Kind.A, b"\1\2\3"),
        record(WEB1, Kind.AAAA, b"\1\2\3\4"),
        record(WEB1, Kind.SRV, b"\0\0"),
        record(WEB1, Kind.SRV, struct.pack(">HHH", 0, 0, 0) + wire_name(WEB1)),
        record(WEB1, Kind.PTR, b""),
        record(WEB1, Kind.TXT, b"\x09short"),
        record(WEB1, Kind.TXT, b"\xff" + b"x" * 255 + (b"\xff" + b"x" * 255) * 6),
        record(WEB1, Kind.TXT, b"\1x", rdclass=3),
        record(WEB1, 99, b"whatever"),
        record(WEB1, Kind.A, b"\1\2\3\4"),
    )
    assert [each.data for each in found] == [Address("1.2.3.4")]


def test_chain_of_pointers_costs_little():
    """Pointers to pointers through a whole packet, asked for by each record, are refused in no time."""
    links = b"".join(struct.pack(">H", 0xC000 | (10 + 2 * number)) for number in range(1, 1000))
    data = header(answers=500) + b"\0\0" + links + record(b"\xc7\x00", Kind.PTR, b"\xc7\x00") * 499
    began = time.process_time()
    with pytest.raises(BadMessage):
        parse_answer(data)
    assert time.process_time() - began < 0.05


def test_largest_packet_of_junk_costs_little():
    one = record(b"\xc0\x0c", Kind.PTR, b"\x01x\xc0\x0c")
    count = 8900 // len(one)
    data = header(questions=1, answers=count) + wire_name(WEB1) + b"\0\x0c\0\1" + one * count
    began = time.process_time()
    assert len(parse_answer(data).records) == count
    assert time.process_time() - began < 0.1


@given(st.binary(max_size=400))
@settings(max_examples=300)
def test_any_bytes_are_read_or_refused(data):
    """Whatever comes out can be printed."""
    try:
        answer = parse_answer(header(answers=3) + data)
    except BadMessage:
        return
    for each in answer.records:
        assert name_text(each.name).isprintable()


def test_label_is_text_that_no_terminal_obeys():
    assert label_text("Büro 3".encode()) == "Büro 3"
    assert label_text(b"\x1b[2Jx\xff\n") == "?[2Jx??"


@pytest.mark.parametrize("text", ["", "a..b", "a" * 64, ".".join(["a" * 60] * 5)])
def test_text_that_is_no_name_is_refused(text):
    with pytest.raises(ValueError, match="no domain name"):
        to_name(text)
