"""The pyinfra agent's protocol, without IO: bytes go in and events come out (SPEC.md).

This package opens no socket, starts no thread and reads no clock.  Four layers, from the wire up:

- the secure link: `Initiator` or `Responder`, which become a `Transport` of encrypted records;
- the answer to the handshake: `encode_welcome`, `encode_denied`, `decode_answer`;
- the `Session`: channels over links that come and go, exactly once and in order;
- the messages: `Exec`, `Put`, `Get`, `Stat`, `Info`, `CloseSession` and their results.

Keys and their text form are in `pyinfra_agent_protocol.keys`.
"""

from ._constants import (
    AGENT_BUDGET_BYTES,
    CHANNELS_MAX,
    DATA_BODY_BYTES,
    DEFAULT_PORT,
    LABEL_MAX_CHARACTERS,
    QUEUE_MAX_BYTES,
    SESSION_BUDGET_BYTES,
    SESSION_ID_BYTES,
)
from ._digest import Digest
from ._errors import (
    FrameInvalid,
    HandshakeFailed,
    KeyFormatError,
    LocalProtocolError,
    MessageInvalid,
    NotAnAgent,
    ProtocolError,
    RecordInvalid,
    RemoteProtocolError,
    RequestRefused,
    ResumeInvalid,
    WindowExceeded,
)
from ._events import (
    CancelReceived,
    DataReceived,
    Event,
    GoodbyeReceived,
    PongReceived,
    RefusalReceived,
    RequestReceived,
    ResizeReceived,
    ResultReceived,
    SignalReceived,
    StreamEnded,
)
from ._handshake import decode_answer, encode_denied, encode_goodbye, encode_welcome
from ._link import AgentHello, ControllerHello, Initiator, Responder
from ._messages import (
    AgentPayload,
    CloseSession,
    CloseSessionResult,
    ControllerPayload,
    Exec,
    ExecResult,
    Get,
    GetResult,
    Goodbye,
    Info,
    InfoResult,
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
)
from ._session import Session, Side
from ._transport import Transport
from ._window import Budget

__all__ = [
    "AGENT_BUDGET_BYTES",
    "CHANNELS_MAX",
    "DATA_BODY_BYTES",
    "DEFAULT_PORT",
    "LABEL_MAX_CHARACTERS",
    "QUEUE_MAX_BYTES",
    "SESSION_BUDGET_BYTES",
    "SESSION_ID_BYTES",
    "AgentHello",
    "AgentPayload",
    "Budget",
    "CancelReceived",
    "CloseSession",
    "CloseSessionResult",
    "ControllerHello",
    "ControllerPayload",
    "DataReceived",
    "Digest",
    "Event",
    "Exec",
    "ExecResult",
    "FrameInvalid",
    "Get",
    "GetResult",
    "Goodbye",
    "GoodbyeReceived",
    "HandshakeFailed",
    "Info",
    "InfoResult",
    "Initiator",
    "KeyFormatError",
    "LocalProtocolError",
    "MessageInvalid",
    "NotAnAgent",
    "PongReceived",
    "ProtocolError",
    "PtySize",
    "Put",
    "PutResult",
    "RecordInvalid",
    "Refusal",
    "RefusalReceived",
    "RemoteProtocolError",
    "Request",
    "RequestReceived",
    "RequestRefused",
    "Resize",
    "ResizeReceived",
    "Responder",
    "Result",
    "ResultReceived",
    "ResumeInvalid",
    "Session",
    "Side",
    "Signal",
    "SignalReceived",
    "Stat",
    "StatResult",
    "StreamEnded",
    "Transport",
    "Welcome",
    "WindowExceeded",
    "decode_answer",
    "encode_denied",
    "encode_goodbye",
    "encode_welcome",
]
