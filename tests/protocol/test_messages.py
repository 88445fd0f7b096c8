"""Every message: what is encoded can be decoded, and each bound holds at its edge."""

from __future__ import annotations

import dataclasses

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_agent_protocol import _messages
from pyinfra_agent_protocol._constants import FRAME_BODY_MAX_BYTES, SESSION_ID_BYTES, WINDOW_INITIAL_BYTES
from pyinfra_agent_protocol._digest import DIGEST_BYTES
from pyinfra_agent_protocol._errors import LocalProtocolError, MessageInvalid
from pyinfra_agent_protocol._messages import (
    REQUESTS,
    AgentPayload,
    Cancel,
    CloseSession,
    CloseSessionResult,
    ControllerPayload,
    End,
    Exec,
    ExecResult,
    Get,
    GetResult,
    Goodbye,
    Info,
    InfoResult,
    Message,
    Ping,
    PtySize,
    Put,
    PutResult,
    Refusal,
    Request,
    Resize,
    Result,
    Signal,
    Stat,
    StatResult,
    Welcome,
    _OpeningFields,
    decode_request,
    encode_request,
)
from tests.protocol.helpers import reproducible

U16, U32, U64 = 2**16 - 1, 2**32 - 1, 2**64 - 1


def characters(most):
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=min(most, 20))


def counter(most=U64, least=0):
    return st.integers(least, most)


names = st.binary(max_size=12).map(lambda raw: raw.replace(b"\0", b"0"))
paths = names.map(lambda name: b"/" + name)
argv = st.lists(names, min_size=1, max_size=4).map(tuple)
variables = st.dictionaries(names.map(lambda name: b"V" + name.replace(b"=", b"_")), names, max_size=3)
scalars = st.none() | st.booleans() | counter() | st.floats(allow_nan=False) | characters(8) | st.binary(max_size=8)
facts = st.dictionaries(characters(8), scalars, max_size=4)
modes = st.none() | counter(0o7777)
signals = counter(64, 1)
windows = counter(U64, WINDOW_INITIAL_BYTES)
digests = st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)


@st.composite
def execs(draw):
    words = draw(argv)
    script = draw(st.none() | st.integers(0, len(words) - 1))
    return Exec(
        words,
        env=draw(st.none() | variables),
        cwd=draw(st.none() | paths),
        stdin=draw(st.booleans()),
        script_index=script,
        script_size=0 if script is None else draw(counter(64 * 2**20, 1)),
        pty=draw(st.none() | MESSAGES[PtySize]),
        timeout_ms=draw(st.none() | counter(U32, 1)),
        label=draw(characters(1024)),
    )


MESSAGES = {
    AgentPayload: st.builds(AgentPayload, characters(64)),
    ControllerPayload: st.builds(
        ControllerPayload,
        st.binary(min_size=16, max_size=16),
        counter(U32, 1),
        st.booleans(),
        counter(),
        characters(64),
    ),
    Welcome: st.builds(
        Welcome,
        st.sampled_from(["new", "resumed", "unknown", "stale", "full"]),
        counter(),
        counter(U16, 1),
        counter(U32),
        characters(64),
        characters(255),
        characters(255),
        st.binary(max_size=32),
    ),
    Ping: st.builds(Ping, counter()),
    Goodbye: st.builds(Goodbye, characters(32), characters(1024)),
    Signal: st.builds(Signal, signals),
    PtySize: st.builds(PtySize, counter(U16, 1), counter(U16, 1), characters(64)),
    Resize: st.builds(Resize, counter(U16, 1), counter(U16, 1)),
    Cancel: st.builds(Cancel),
    End: st.builds(End, st.none() | counter(), st.none() | digests),
    Refusal: st.builds(Refusal, characters(32), characters(4096)),
    Exec: execs(),
    ExecResult: st.builds(
        lambda ending, reason: ExecResult(ending[0], ending[1], reason),
        st.tuples(counter(255), st.none()) | st.tuples(st.none(), signals),
        st.sampled_from(["exited", "timeout", "cancelled"]),
    ),
    Put: st.builds(Put, paths, modes, st.booleans(), st.none() | argv, st.none() | variables),
    PutResult: st.builds(PutResult, counter(), st.booleans(), st.booleans()),
    Get: st.builds(Get, paths, st.none() | argv, st.none() | variables, st.binary(max_size=64)),
    GetResult: st.builds(GetResult, counter(), digests, modes),
    Stat: st.builds(Stat, paths, st.booleans()),
    StatResult: st.builds(StatResult, st.none() | facts),
    Info: st.builds(Info),
    InfoResult: st.builds(InfoResult, facts),
    CloseSession: st.builds(CloseSession),
    CloseSessionResult: st.builds(CloseSessionResult),
    _OpeningFields: st.builds(_OpeningFields, windows),
}


def subclasses(kind):
    return {kind} | {deeper for child in kind.__subclasses__() for deeper in subclasses(child)}


def declared():
    """Every message of the module; dataclass(slots=True) leaves its unslotted draft behind, which is not."""
    return {kind for kind in subclasses(Message) if getattr(_messages, kind.__name__, None) is kind} - {
        Message,
        Request,
        Result,
    }


def test_every_message_has_a_strategy_here():
    assert set(MESSAGES) == declared()


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.NAME)
def test_message_decodes_to_what_was_encoded(kind):
    @reproducible(30)
    @given(MESSAGES[kind])
    def check(message):
        assert kind.decode(message.encode()) == message

    check()


@pytest.mark.parametrize("kind", REQUESTS.values(), ids=REQUESTS)
def test_request_decodes_to_what_was_encoded(kind):
    @reproducible(30)
    @given(MESSAGES[kind], windows)
    def check(request, window):
        assert decode_request(encode_request(request, window)) == (request, window)

    check()


#: Per message: fields that are right, as they stand on the wire.
RIGHT = {
    ControllerPayload: {"session": bytes(SESSION_ID_BYTES), "attempt": 1, "resume": False},
    Welcome: {"session": "new", "received": 0, "channels": 1, "ttl": 0},
    Ping: {"id": 0},
    Goodbye: {"code": "idle"},
    Signal: {"signal": 15},
    PtySize: {},
    Resize: {"rows": 24, "columns": 80},
    End: {},
    Refusal: {"code": "failed", "text": ""},
    Exec: {"argv": [b"true"]},
    ExecResult: {"exit": 0},
    Put: {"path": b"f"},
    PutResult: {"size": 0},
    Get: {"path": b"f"},
    GetResult: {"size": 0, "digest": bytes(DIGEST_BYTES)},
    Stat: {"path": b"f"},
    StatResult: {"stat": None},
    InfoResult: {"info": {}},
    AgentPayload: {},
    _OpeningFields: {},
}

#: The last value inside each bound, and the first outside it.
EDGES = [
    (AgentPayload, "certificate", bytes(2048), bytes(2049)),
    (ControllerPayload, "certificate", bytes(2048), bytes(2049)),
    (ControllerPayload, "session", bytes(16), bytes(17)),
    (ControllerPayload, "session", bytes(16), bytes(15)),
    (ControllerPayload, "attempt", 1, 0),
    (ControllerPayload, "attempt", U32, U32 + 1),
    (ControllerPayload, "resume", True, 1),
    (ControllerPayload, "received", U64, -1),
    (ControllerPayload, "version", "v" * 64, "v" * 65),
    (AgentPayload, "version", "v" * 64, "v" * 65),
    (Welcome, "session", "full", "older"),
    (Welcome, "received", U64, -1),
    (Welcome, "channels", 1, 0),
    (Welcome, "channels", U16, U16 + 1),
    (Welcome, "ttl", U32, U32 + 1),
    (Welcome, "version", "v" * 64, "v" * 65),
    (Welcome, "hostname", "h" * 255, "h" * 256),
    (Welcome, "user", "u" * 255, "u" * 256),
    (Welcome, "next_key", b"k" * 32, b"k" * 33),
    (Ping, "id", U64, -1),
    (Goodbye, "code", "c" * 32, "c" * 33),
    (Goodbye, "text", "t" * 1024, "t" * 1025),
    (Signal, "signal", 1, 0),
    (Signal, "signal", 64, 65),
    (PtySize, "rows", 1, 0),
    (PtySize, "columns", U16, U16 + 1),
    (PtySize, "term", "t" * 64, "t" * 65),
    (Resize, "rows", U16, U16 + 1),
    (Resize, "columns", 1, 0),
    (End, "size", U64, -1),
    (End, "digest", bytes(DIGEST_BYTES), bytes(DIGEST_BYTES + 1)),
    (End, "digest", None, bytes(DIGEST_BYTES - 1)),
    (Refusal, "code", "c" * 32, "c" * 33),
    (Refusal, "text", "t" * 4096, "t" * 4097),
    (Exec, "argv", [b""], []),
    (Exec, "argv", [b""] * 4096, [b""] * 4097),
    (Exec, "argv", [b"a"], [b"a\0"]),
    (Exec, "env", {b"%d" % n: b"" for n in range(1024)}, {b"%d" % n: b"" for n in range(1025)}),
    (Exec, "cwd", b"/" * 4096, b"/" * 4097),
    (Exec, "cwd", b"/", b""),
    (Exec, "stdin", True, 1),
    (Exec, "timeout_ms", 1, 0),
    (Exec, "timeout_ms", U32, U32 + 1),
    (Exec, "label", "l" * 1024, "l" * 1025),
    (Exec, "label", "", b""),
    (Exec, "pty", {}, []),
    (ExecResult, "exit", 255, 256),
    (ExecResult, "exit", 0, -1),
    (ExecResult, "signal", None, 0),
    (ExecResult, "signal", None, 65),
    (ExecResult, "reason", "timeout", "bored"),
    (Put, "path", b"p" * 4096, b"p" * 4097),
    (Put, "path", b"p", b""),
    (Put, "path", b"p", b"p\0"),
    (Put, "mode", 0o7777, 0o10000),
    (Put, "in_place", True, None),
    (Put, "argv", [b"cat"], []),
    (Put, "env", {b"A": b""}, {b"": b""}),
    (PutResult, "size", U64, -1),
    (PutResult, "created", True, 1),
    (PutResult, "in_place", True, 1),
    (Get, "path", b"p" * 4096, b"p" * 4097),
    (Get, "argv", [b"cat"], []),
    (Get, "env", {b"A": b""}, {b"A=": b""}),
    (Get, "nonce", bytes(64), bytes(65)),
    (GetResult, "size", U64, -1),
    (GetResult, "digest", bytes(DIGEST_BYTES), bytes(DIGEST_BYTES + 1)),
    (GetResult, "digest", bytes(DIGEST_BYTES), bytes(DIGEST_BYTES - 1)),
    (GetResult, "mode", 0o7777, 0o10000),
    (Stat, "path", b"p" * 4096, b"p" * 4097),
    (Stat, "follow", False, 0),
    (StatResult, "stat", {str(n): n for n in range(32)}, {str(n): n for n in range(33)}),
    (_OpeningFields, "window", WINDOW_INITIAL_BYTES, WINDOW_INITIAL_BYTES - 1),
    (_OpeningFields, "window", U64, -1),
    (_OpeningFields, "window", U64, None),
    (InfoResult, "info", {str(n): n for n in range(64)}, {str(n): n for n in range(65)}),
]


@pytest.mark.parametrize(("kind", "name", "inside", "outside"), EDGES)
def test_bound_holds_at_its_edge(kind, name, inside, outside):
    kind.decode(msgpack.packb({**RIGHT[kind], name: inside}))
    with pytest.raises(MessageInvalid, match=f"^({kind.NAME}: {name}|the message) "):
        kind.decode(msgpack.packb({**RIGHT[kind], name: outside}))


def test_every_bound_has_an_edge_here():
    """No field is without a refused value; script_index and script_size bound each other, below."""
    tested = {(kind, name) for kind, name, _, _ in EDGES}
    fields = {(kind, field.name) for kind in declared() for field in dataclasses.fields(kind)}
    assert fields - tested == {(Exec, "script_index"), (Exec, "script_size")}


@pytest.mark.parametrize(
    "script",
    [
        pytest.param({"script_index": 0}, id="a script without a size"),
        pytest.param({"script_size": 1}, id="a size without a script"),
        pytest.param({"script_index": 1, "script_size": 1}, id="beyond argv"),
        pytest.param({"script_index": -1, "script_size": 1}, id="before argv"),
        pytest.param({"script_index": 4096, "script_size": 1}, id="beyond any argv"),
        pytest.param({"script_index": 0, "script_size": 64 * 2**20 + 1}, id="too long a script"),
    ],
)
def test_exec_with_an_impossible_script_is_refused(script):
    Exec.decode(msgpack.packb({"argv": [b"sh"], "script_index": 0, "script_size": 64 * 2**20}))
    with pytest.raises(MessageInvalid, match=r"^exec: script"):
        Exec.decode(msgpack.packb({"argv": [b"sh"], **script}))


@pytest.mark.parametrize("ending", [{"exit": None}, {"exit": 0, "signal": 9}])
def test_exec_result_with_both_or_neither_of_exit_and_signal_is_refused(ending):
    ExecResult.decode(msgpack.packb({"exit": None, "signal": 64}))
    with pytest.raises(MessageInvalid, match="exactly one of exit and signal"):
        ExecResult.decode(msgpack.packb(ending))


def test_defaults_do_not_travel():
    assert msgpack.unpackb(encode_request(Exec((b"true",)))) == {"request": "exec", "argv": [b"true"]}


def test_request_that_says_no_window_has_the_initial_one():
    assert decode_request(msgpack.packb({"request": "info"})) == (Info(), WINDOW_INITIAL_BYTES)


@pytest.mark.parametrize("window", [0, WINDOW_INITIAL_BYTES - 1, -1, None, float(U32), True, b"131072"])
def test_request_with_a_window_out_of_bounds_is_refused(window):
    with pytest.raises(MessageInvalid, match=r"^open: window is not"):
        decode_request(msgpack.packb({"request": "info", "window": window}))


def test_no_request_has_a_field_that_hides_one_of_its_opening():
    for kind in REQUESTS.values():
        assert {"request", "window"}.isdisjoint(field.name for field in dataclasses.fields(kind))


@pytest.mark.parametrize(
    ("request_made", "takes_data"),
    [
        (Put(b"f"), True),
        (Exec((b"cat",), stdin=True), True),
        (Exec((b"sh",), script_index=0, script_size=1), True),
        (Exec((b"true",)), False),
        (Get(b"f"), False),
        (Stat(b"f"), False),
        (Info(), False),
        (CloseSession(), False),
    ],
)
def test_request_tells_whether_data_follows_it(request_made, takes_data):
    assert request_made.takes_data is takes_data


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"request": "reboot"}, "request 'reboot' is unknown to this version"),
        ({"request": "x" * 5000}, "request 'x{64}' is unknown"),
        ({"request": 1}, "request '1' is unknown"),
        ({"request": ["exec"]}, "is unknown"),
        ({"request": b"exec"}, "is unknown"),
        ({"request": "exec-result", "exit": 0}, "is unknown"),
        ({}, "an OPEN without a request"),
    ],
)
def test_unknown_request_is_refused_by_name(fields, reason):
    with pytest.raises(MessageInvalid, match=reason):
        decode_request(msgpack.packb(fields))


def test_request_that_does_not_fit_a_frame_is_our_own_fault():
    room = FRAME_BODY_MAX_BYTES - len(encode_request(Exec((b"x" * 60_000,)))) + 60_000
    assert len(encode_request(Exec((b"x" * room,)))) == FRAME_BODY_MAX_BYTES
    with pytest.raises(LocalProtocolError, match=f"exec takes {FRAME_BODY_MAX_BYTES + 1} bytes, a frame holds"):
        encode_request(Exec((b"x" * (room + 1),)))


def test_request_that_cannot_be_packed_is_our_own_fault():
    with pytest.raises(LocalProtocolError, match="exec cannot be packed"):
        encode_request(Exec(("\udcff",)))


@reproducible(300)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_refused(data):
    try:
        request, window = decode_request(data)
    except MessageInvalid:
        return
    assert type(request) in REQUESTS.values()
    assert WINDOW_INITIAL_BYTES <= window <= U64


@st.composite
def nearly_requests(draw):
    """Requests with one byte changed, or with any value in any field."""
    if draw(st.booleans()):
        data = bytearray(encode_request(draw(st.one_of([MESSAGES[kind] for kind in REQUESTS.values()])), draw(windows)))
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        return bytes(data)
    kind = draw(st.sampled_from(sorted(REQUESTS)))
    fields = [field.name for field in dataclasses.fields(REQUESTS[kind])] + ["window"]
    values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(characters(4) | names, scalars, max_size=3)
    return msgpack.packb({"request": kind, **draw(st.dictionaries(st.sampled_from(fields), values))})


@reproducible(150)
@given(nearly_requests())
def test_nearly_a_request_is_a_request_or_refused(data):
    try:
        opening = decode_request(data)
    except MessageInvalid:
        return
    assert decode_request(encode_request(*opening)) == opening
