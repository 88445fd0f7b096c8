"""Decoding of hostile msgpack: one map of plain values, or one refusal."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from typing import ClassVar

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_agent_protocol._constants import FRAME_BODY_MAX_BYTES, MESSAGE_DEPTH_MAX, MESSAGE_ITEMS_MAX
from pyinfra_agent_protocol._errors import LocalProtocolError, MessageInvalid
from pyinfra_agent_protocol._fields import (
    Message,
    array,
    binary,
    boolean,
    choice,
    decode_map,
    environment,
    field,
    integer,
    mapping,
    nullable,
    record,
    text,
)
from tests.protocol.helpers import reproducible


@dataclass(frozen=True, slots=True)
class Inner(Message):
    NAME: ClassVar[str] = "inner"
    n: int = field(integer(0, 9))


KINDS = {
    "integer": integer(-1, 10),
    "boolean": boolean(),
    "text": text(3),
    "choice": choice("a", "b"),
    "binary": binary(3, least=1),
    "name": binary(3, nul=False),
    "array": array(integer(0, 9), least=1, most=3),
    "environment": environment(2),
    "mapping": mapping(2),
    "record": record(Inner),
    "nullable": nullable(integer(0, 1)),
}


def one(kind):
    @dataclass(frozen=True, slots=True)
    class One(Message):
        NAME: ClassVar[str] = "one"
        value: object = field(KINDS[kind])

    return One


def decode(kind, value):
    return one(kind).decode(msgpack.packb({"value": value})).value


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("integer", -1, -1),
        ("integer", 10, 10),
        ("boolean", True, True),
        ("text", "äöü", "äöü"),
        ("text", "", ""),
        ("choice", "b", "b"),
        ("binary", b"\0", b"\0"),
        ("binary", b"abc", b"abc"),
        ("name", b"", b""),
        ("array", [0], (0,)),
        ("array", [1, 2, 3], (1, 2, 3)),
        ("environment", {}, {}),
        ("environment", {b"A": b"", b"B": b"="}, {b"A": b"", b"B": b"="}),
        ("mapping", {"a": 1.5, "b": None}, {"a": 1.5, "b": None}),
        ("record", {"n": 9, "newer": 1}, Inner(9)),
        ("nullable", None, None),
        ("nullable", 1, 1),
    ],
)
def test_value_inside_its_bounds_is_taken(kind, value, expected):
    decoded = decode(kind, value)
    assert decoded == expected
    assert type(decoded) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("integer", -2, "is not from -1 to 10"),
        ("integer", 11, "is not from -1 to 10"),
        ("integer", True, "is not an integer"),
        ("integer", 1.0, "is not an integer"),
        ("integer", None, "is not an integer"),
        ("boolean", 1, "is not a boolean"),
        ("boolean", 0, "is not a boolean"),
        ("text", "abcd", "longer than 3"),
        ("text", b"abc", "is not a string"),
        ("choice", "c", "is none of a, b"),
        ("choice", b"a", "is none of a, b"),
        ("choice", ["a"], "is none of a, b"),
        ("binary", b"", "is not 1 to 3 bytes"),
        ("binary", b"abcd", "is not 1 to 3 bytes"),
        ("binary", "abc", "is not binary"),
        ("name", b"a\0", "contains a NUL"),
        ("array", [], "does not have 1 to 3 items"),
        ("array", [1] * 4, "does not have 1 to 3 items"),
        ("array", [True], "is not an integer"),
        ("array", {"a": 1}, "is not an array"),
        ("environment", {b"": b""}, "empty or contains ="),
        ("environment", {b"A=": b""}, "empty or contains ="),
        ("environment", {b"A\0": b""}, "contains a NUL"),
        ("environment", {b"A": b"\0"}, "contains a NUL"),
        ("environment", {"A": b""}, "is not binary"),
        ("environment", {b"A": "a"}, "is not binary"),
        ("environment", {b"A": b"", b"B": b"", b"C": b""}, "more than 2 variables"),
        ("environment", [], "is not a map"),
        ("mapping", {"a": 1, "b": 1, "c": 1}, "more than 2 entries"),
        ("mapping", {b"a": 1}, "no string"),
        ("mapping", {"a": [1]}, "no scalar"),
        ("mapping", {"a": msgpack.Timestamp(0)}, "extension type"),
        ("mapping", [], "is not a map"),
        ("record", {"n": 10}, "n is not from 0 to 9"),
        ("record", {}, "n is missing"),
        ("record", [], "is not a map"),
        ("nullable", 2, "is not from 0 to 1"),
        ("nullable", False, "is not an integer"),
    ],
)
def test_value_of_another_type_or_outside_its_bounds_is_refused(kind, value, reason):
    with pytest.raises(MessageInvalid, match=reason):
        decode(kind, value)


def test_missing_field_is_refused_by_name():
    with pytest.raises(MessageInvalid, match="one: value is missing"):
        one("integer").decode(b"\x80")


def test_unknown_fields_are_ignored_so_that_a_peer_may_be_newer():
    newer = {"value": 1, "later": {"a": [1, b"2"]}, b"binary": 1}
    assert one("integer").decode(msgpack.packb(newer)).value == 1


def deep(levels):
    value = 0
    for _ in range(levels - 1):
        value = [value]
    return msgpack.packb({"x": value})


def test_nesting_is_taken_up_to_its_bound():
    assert decode_map(deep(MESSAGE_DEPTH_MAX)) == {"x": [[[0]]]}


ANNOUNCED = b"\xff\xff\xff\xff"
HOSTILE = {
    "nothing": b"",
    "not a map": b"\x90",
    "a scalar": b"\xc0",
    "trailing bytes": b"\x80\x80",
    "a map cut short": b"\x81",
    "the byte that is no msgpack": b"\xc1",
    "a key twice": b"\x82\xa1a\x01\xa1a\x02",
    "a key twice, deeper": b"\x81\xa1x\x82\xa1a\x01\xa1a\x02",
    "an integer as key": b"\x81\x01\x01",
    "nil as key": b"\x81\xc0\x01",
    "an array as key": b"\x81\x90\x01",
    "a map as key": b"\x81\x80\x01",
    "an extension": b"\x81\xa1a\xd4\x05\x00",
    "an extension as key": b"\x81\xd4\x05\x00\x01",
    "a timestamp": b"\x81\xa1a\xd6\xff\x00\x00\x00\x01",
    "a timestamp in an array": b"\x81\xa1a\x91\xd6\xff\x00\x00\x00\x01",
    "a timestamp as key": b"\x81\xd6\xff\x00\x00\x00\x01\x01",
    "a timestamp of a wrong length": b"\x81\xa1a\xd4\xff\x00",
    "text that is not UTF-8": b"\x81\xa1a\xa1\xff",
    "a key that is not UTF-8": b"\x81\xa1\xff\x01",
    "a surrogate in UTF-8": b"\x81\xa1a\xa3\xed\xa0\x80",
    "one level too deep": deep(MESSAGE_DEPTH_MAX + 1),
    "200 levels": deep(200),
    "60,000 levels of arrays": b"\x81\xa1x" + b"\x91" * 60_000 + b"\xc0",
    "60,000 levels of maps": b"\x81\xa1x" * 20_000 + b"\xc0",
    "an array of 2^32 items": b"\x81\xa1x\xdd" + ANNOUNCED,
    "a map of 2^32 items": b"\xdf" + ANNOUNCED,
    "a string of 4 GiB": b"\x81\xa1x\xdb" + ANNOUNCED,
    "a binary of 4 GiB": b"\x81\xa1x\xc6" + ANNOUNCED,
    "an extension of 4 GiB": b"\x81\xa1x\xc9" + ANNOUNCED + b"\x05",
    "an array of too many items": msgpack.packb({"x": [0] * (MESSAGE_ITEMS_MAX + 1)}),
    "a map of too many items": msgpack.packb({str(n): 0 for n in range(MESSAGE_ITEMS_MAX + 1)}),
    "arrays in arrays, each of 65,280 announced items": (b"\xdd\x00\x00\xff\x00" * 13_200)[:FRAME_BODY_MAX_BYTES],
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bytes_are_refused(data):
    with pytest.raises(MessageInvalid, match=r"^the message "):
        decode_map(data)


def test_announced_lengths_cost_no_memory_that_the_bytes_do_not():
    """Nested headers that announce much allocate at most the bound of items a level."""
    bombs = [mark * (FRAME_BODY_MAX_BYTES // len(mark)) for mark in (b"\xdc\xff\xff", b"\xdc\x10\x00", b"\xdf\x00\x00")]
    tracemalloc.start()
    try:
        for bomb in bombs:
            with pytest.raises(MessageInvalid):
                decode_map(bomb)
        assert tracemalloc.get_traced_memory()[1] < 48 * 1024 * 1024
    finally:
        tracemalloc.stop()


@reproducible(500)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_map_or_refused(data):
    try:
        value = decode_map(data)
    except MessageInvalid:
        return
    assert type(value) is dict


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.binary(max_size=3), inner),
    max_leaves=12,
)


def depth(value):
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@reproducible(80)
@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4))
def test_plain_map_decodes_to_itself_unless_it_is_too_deep(value):
    data = msgpack.packb(value)
    if depth(value) > MESSAGE_DEPTH_MAX:
        with pytest.raises(MessageInvalid, match="nested deeper"):
            decode_map(data)
    else:
        assert decode_map(data) == value


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("integer", 11, "one: value is not from -1 to 10"),
        ("integer", 2**64, "one cannot be packed"),
        ("text", "\udcff", "one cannot be packed"),
        ("boolean", object(), "one cannot be packed"),
        ("binary", bytes(FRAME_BODY_MAX_BYTES), "a frame holds"),
    ],
)
def test_we_do_not_send_what_the_peer_would_refuse(kind, value, reason):
    with pytest.raises(LocalProtocolError, match=reason):
        one(kind)(value).encode()
