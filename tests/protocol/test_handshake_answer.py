"""The agent's first record: a welcome, one identical denial, or no agent of ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_agent_protocol._errors import FrameInvalid, MessageInvalid, RemoteProtocolError
from pyinfra_agent_protocol._frames import FrameType
from pyinfra_agent_protocol._handshake import decode_answer, encode_denied, encode_welcome
from pyinfra_agent_protocol._messages import Welcome
from tests.protocol.helpers import frame, reproducible


@pytest.mark.parametrize("session", ["new", "resumed", "unknown", "stale", "full"])
def test_connector_reads_the_welcome_that_the_agent_wrote(session):
    welcome = Welcome(session, received=7, channels=3, ttl=60, version="0.1.0", hostname="web1")
    assert decode_answer(encode_welcome(welcome)) == welcome


def test_connector_reads_a_denial_as_none():
    assert decode_answer(encode_denied()) is None


def test_denial_is_eight_bytes_and_always_the_same():
    assert encode_denied() == encode_denied() == bytes([33, 0, 0, 0, 0, 0, 0, 0])


WELCOME = encode_welcome(Welcome("new", 0, 1, 0))


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(WELCOME + WELCOME, id="two welcomes"),
        pytest.param(WELCOME + encode_denied(), id="both"),
        pytest.param(frame(FrameType.DENIED, 0, b"because"), id="a denial with a reason"),
        pytest.param(frame(FrameType.DENIED, 1), id="a denial on a channel"),
        pytest.param(frame(FrameType.WELCOME, 1, WELCOME[8:]), id="a welcome on a channel"),
        pytest.param(frame(FrameType.DATA, 1, b"x"), id="data"),
        pytest.param(WELCOME[:-1], id="a welcome cut short"),
    ],
)
def test_connector_refuses_what_is_no_answer(record):
    with pytest.raises(FrameInvalid):
        decode_answer(record)


@pytest.mark.parametrize("body", [b"", b"\x80", b"\x81\xa7session\xa5maybe"])
def test_connector_refuses_a_welcome_that_is_no_message(body):
    with pytest.raises(MessageInvalid):
        decode_answer(frame(FrameType.WELCOME, 0, body))


@reproducible(200)
@given(st.binary(max_size=60))
def test_connector_reads_any_bytes_or_refuses_them(record):
    try:
        decode_answer(record)
    except RemoteProtocolError:
        return
