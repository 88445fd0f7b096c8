"""Every error the protocol raises, and whose fault it is.

    ProtocolError
    ├── LocalProtocolError        we called something that the state does not allow: a bug of ours
    └── RemoteProtocolError       the peer's bytes broke a rule; the link (or the session) ends
        ├── NotAnAgent            the first bytes are not an agent's preface
        ├── HandshakeFailed       the Noise handshake did not verify
        ├── RecordInvalid         a record is malformed or its tag does not verify
        ├── FrameInvalid          a frame is malformed, unknown, or illegal in this state
        ├── MessageInvalid        a msgpack body is not the message that it should be
        ├── WindowExceeded        the peer sent more than it was granted
        └── ResumeInvalid         a resume point lies outside what was sent
    RequestRefused                the agent answered one request with REFUSED; the link lives on
    KeyFormatError                a text is not a key (a ValueError)

`ProtocolError` and `RemoteProtocolError` are never raised themselves.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "FrameInvalid",
    "HandshakeFailed",
    "KeyFormatError",
    "LocalProtocolError",
    "MessageInvalid",
    "NotAnAgent",
    "ProtocolError",
    "RecordInvalid",
    "RemoteProtocolError",
    "RequestRefused",
    "ResumeInvalid",
    "WindowExceeded",
]


class ProtocolError(Exception):
    """Base of both blames; never raised itself."""


class LocalProtocolError(ProtocolError):
    """We asked the protocol for something that its state does not allow: a bug of ours."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; what it sent is dropped and the link ends.

    `code` is what a GOODBYE frame tells the peer (SPEC.md section 11).
    """

    code: ClassVar[str] = "protocol"


class NotAnAgent(RemoteProtocolError):
    """The peer's first bytes are not those of a pyinfra agent."""

    code = "preface"


class HandshakeFailed(RemoteProtocolError):
    """The Noise handshake did not verify: tampering, a wrong key or a broken peer."""

    code = "handshake"


class RecordInvalid(RemoteProtocolError):
    """A record is too short, too long, or was not sealed with this link's keys."""

    code = "record"


class FrameInvalid(RemoteProtocolError):
    """A frame is cut short, of an unknown type, or not allowed now."""

    code = "frame"


class MessageInvalid(RemoteProtocolError):
    """A message's body is not msgpack, or a field is missing or out of its bounds."""

    code = "message"


class WindowExceeded(RemoteProtocolError):
    """The peer sent more bytes or channels than it was granted."""

    code = "window"


class ResumeInvalid(RemoteProtocolError):
    """A resume point or acknowledgement lies outside what was sent; the session ends."""

    code = "resume"


class RequestRefused(Exception):
    """The agent refused one request; nothing else on the link is affected.

    Attributes:
        code: one of the codes of SPEC.md section 10, for programs.
        text: one line for a person.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class KeyFormatError(ValueError):
    """A text is not a key in the form of SPEC.md section 3."""
