"""What a session tells its skin: frames that arrived, in the order in which they did.

The names say what happened.  ACK and CREDIT are the session's own business and make no event; after
any of them the skin asks again whether there is something to send.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ._messages import Goodbye, Refusal, Request, Resize, Result, Signal

__all__ = [
    "CancelReceived",
    "DataReceived",
    "Event",
    "GoodbyeReceived",
    "PongReceived",
    "RefusalReceived",
    "RequestReceived",
    "ResizeReceived",
    "ResultReceived",
    "SignalReceived",
    "StreamEnded",
]


class RequestReceived(NamedTuple):
    """Agent: a channel was opened with this request."""

    channel: int
    request: Request


class DataReceived(NamedTuple):
    """Bytes arrived; `Session.consume` them when they were used up."""

    channel: int
    stream: int
    data: bytes | bytearray


class StreamEnded(NamedTuple):
    """Agent: no more DATA comes up; what was sent, if the controller said."""

    channel: int
    size: int | None
    digest: bytes | None


class SignalReceived(NamedTuple):
    """Agent: deliver this signal to the command."""

    channel: int
    signal: Signal


class ResizeReceived(NamedTuple):
    """Agent: the terminal has this size now."""

    channel: int
    size: Resize


class CancelReceived(NamedTuple):
    """Agent: the controller no longer wants this request."""

    channel: int


class ResultReceived(NamedTuple):
    """Connector: the request was carried out; the channel is closed."""

    channel: int
    result: Result


class RefusalReceived(NamedTuple):
    """Connector: the request was refused or failed; the channel is closed."""

    channel: int
    refusal: Refusal


class PongReceived(NamedTuple):
    """The peer answered a ping."""

    id: int


class GoodbyeReceived(NamedTuple):
    """The peer is about to close the link, and says why."""

    goodbye: Goodbye


Event = (
    RequestReceived
    | DataReceived
    | StreamEnded
    | SignalReceived
    | ResizeReceived
    | CancelReceived
    | ResultReceived
    | RefusalReceived
    | PongReceived
    | GoodbyeReceived
)
