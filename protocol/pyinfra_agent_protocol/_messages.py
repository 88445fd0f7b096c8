"""Every message, its fields and their bounds (SPEC.md section 9).

Requests are opened by the connector; each is answered by exactly one result of its own type, or by
`Refusal`.  Names and paths are binary because they are in Unix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

from ._constants import FRAME_BODY_MAX_BYTES, LABEL_MAX_CHARACTERS, SESSION_ID_BYTES, WINDOW_INITIAL_BYTES
from ._constants_link import CERTIFICATE_MAX_BYTES, KEY
from ._digest import DIGEST_BYTES
from ._errors import MessageInvalid
from ._fields import (
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
    pack,
    record,
    text,
)

__all__ = [
    "REQUESTS",
    "AgentPayload",
    "Cancel",
    "CloseSession",
    "CloseSessionResult",
    "ControllerPayload",
    "End",
    "Exec",
    "ExecResult",
    "Get",
    "GetResult",
    "Goodbye",
    "Info",
    "InfoResult",
    "Message",
    "Ping",
    "PtySize",
    "Put",
    "PutResult",
    "Refusal",
    "Request",
    "Resize",
    "Result",
    "Signal",
    "Stat",
    "StatResult",
    "Welcome",
    "decode_request",
    "encode_request",
]

_U16: Final = 2**16 - 1
_U32: Final = 2**32 - 1
_U64: Final = 2**64 - 1
_ARGUMENT: Final = binary(FRAME_BODY_MAX_BYTES, nul=False)
_PATH: Final = binary(4096, least=1, nul=False)
_ARGV: Final = array(_ARGUMENT, least=1, most=4096)
_VARIABLES: Final = environment(1024)


# --- handshake payloads and the welcome ---


@dataclass(frozen=True, slots=True)
class AgentPayload(Message):
    """Payload of handshake message 2: sent before the agent knows who asks, so it says little."""

    NAME: ClassVar[str] = "agent-payload"
    version: str = field(text(64), "")
    certificate: bytes = field(binary(CERTIFICATE_MAX_BYTES), b"")


@dataclass(frozen=True, slots=True)
class ControllerPayload(Message):
    """Payload of handshake message 3: which session this link is for, and how far it came.

    Attributes:
        session: the identifier that the controller chose.
        attempt: rises with every link tried for this session; fences the older ones off.
        resume: False opens the session, True demands that it exists.
        received: numbered frames received so far in this session.
        certificate: what an authority says of this controller's key (SPEC.md section 16).
    """

    NAME: ClassVar[str] = "controller-payload"
    session: bytes = field(binary(SESSION_ID_BYTES, least=SESSION_ID_BYTES))
    attempt: int = field(integer(1, _U32))
    resume: bool = field(boolean())
    received: int = field(integer(0, _U64), 0)
    version: str = field(text(64), "")
    certificate: bytes = field(binary(CERTIFICATE_MAX_BYTES), b"")


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """The agent's first record: what became of the session that the controller named.

    Attributes:
        session: ``new``, ``resumed``, ``unknown`` (a resume of what is not there) or ``stale`` (an
            attempt that is not above the highest seen) or ``full`` (no room for one more); after the
            last three the agent closes the link.
        received: numbered frames that the agent received so far in this session.
        channels: requests that may be open at once.
        ttl: seconds for which the agent keeps the session after a link was lost.
        user: name of the user that the agent runs as.
        next_key: the key that the agent will have after its rotation, for those who pinned the one it has now; b"" if
            there is none.
    """

    NAME: ClassVar[str] = "welcome"
    session: str = field(choice("new", "resumed", "unknown", "stale", "full"))
    received: int = field(integer(0, _U64))
    channels: int = field(integer(1, _U16))
    ttl: int = field(integer(0, _U32))
    version: str = field(text(64), "")
    hostname: str = field(text(255), "")
    user: str = field(text(255), "")
    next_key: bytes = field(binary(KEY), b"")


# --- frames about the link ---


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Body of PING, and of the PONG that answers it."""

    NAME: ClassVar[str] = "ping"
    id: int = field(integer(0, _U64))


@dataclass(frozen=True, slots=True)
class Goodbye(Message):
    """Why the sender is about to close the link."""

    NAME: ClassVar[str] = "goodbye"
    code: str = field(text(32))
    text: str = field(text(1024), "")


# --- frames about a channel ---


@dataclass(frozen=True, slots=True)
class Signal(Message):
    """Deliver a signal to the command's process group."""

    NAME: ClassVar[str] = "signal"
    signal: int = field(integer(1, 64))


@dataclass(frozen=True, slots=True)
class PtySize(Message):
    """A terminal: its size in characters and what TERM calls it."""

    NAME: ClassVar[str] = "pty"
    rows: int = field(integer(1, _U16), 24)
    columns: int = field(integer(1, _U16), 80)
    term: str = field(text(64), "xterm")


@dataclass(frozen=True, slots=True)
class Resize(Message):
    """The terminal's new size in characters."""

    NAME: ClassVar[str] = "resize"
    rows: int = field(integer(1, _U16))
    columns: int = field(integer(1, _U16))


@dataclass(frozen=True, slots=True)
class Cancel(Message):
    """The controller no longer wants the request; it is still answered."""

    NAME: ClassVar[str] = "cancel"


@dataclass(frozen=True, slots=True)
class End(Message):
    """No more DATA in this direction; what was sent, where the receiver has to verify it."""

    NAME: ClassVar[str] = "end"
    size: int | None = field(nullable(integer(0, _U64)), None)
    digest: bytes | None = field(nullable(binary(DIGEST_BYTES, least=DIGEST_BYTES)), None)


@dataclass(frozen=True, slots=True)
class Refusal(Message):
    """Body of REFUSED: a code for programs and one line for a person (SPEC.md section 10)."""

    NAME: ClassVar[str] = "refusal"
    code: str = field(text(32))
    text: str = field(text(4096))


# --- requests and their results ---


class Request(Message):
    """Base of what a connector may ask; `RESULT` is the type of its answer."""

    RESULT: ClassVar[type[Result]]

    #: True if the answer may carry DATA.
    GIVES_DATA: ClassVar[bool] = False

    @property
    def takes_data(self) -> bool:
        """True if DATA follows the request."""
        return False


class Result(Message):
    """Base of the answers."""


@dataclass(frozen=True, slots=True)
class ExecResult(Result):
    """How a command ended.

    Attributes:
        exit: the exit status, or None if a signal ended it.
        signal: the signal's number, or None.
        reason: ``exited``; ``timeout`` or ``cancelled`` if the agent ended it.
    """

    NAME: ClassVar[str] = "exec-result"
    exit: int | None = field(nullable(integer(0, 255)))
    signal: int | None = field(nullable(integer(1, 64)), None)
    reason: str = field(choice("exited", "timeout", "cancelled"), "exited")

    def __post_init__(self) -> None:
        if (self.exit is None) == (self.signal is None):
            raise MessageInvalid("exec-result: exactly one of exit and signal is given")


@dataclass(frozen=True, slots=True)
class Exec(Request):
    """Run a command.

    Attributes:
        argv: the program and its arguments.
        env: variables set on top of the agent's login environment.
        cwd: directory to start in; None is the home directory.
        stdin: True if DATA for the command's standard input follows, up to END; else it is empty.
        script_index: position in argv that the script, sent as the first bytes of DATA, replaces.
        script_size: length of that script in bytes; for scripts that one frame cannot hold.
        pty: run in a terminal of this size; stderr then arrives as stdout.
        timeout_ms: milliseconds after which the agent ends the command.
        label: the command as it may be shown and kept, with its secrets masked; argv never is.
    """

    NAME: ClassVar[str] = "exec"
    RESULT: ClassVar[type[Result]] = ExecResult
    GIVES_DATA: ClassVar[bool] = True
    argv: tuple[bytes, ...] = field(_ARGV)
    env: dict[bytes, bytes] | None = field(nullable(_VARIABLES), None)
    cwd: bytes | None = field(nullable(_PATH), None)
    stdin: bool = field(boolean(), False)
    script_index: int | None = field(nullable(integer(0, 4095)), None)
    script_size: int = field(integer(0, 64 * 1024 * 1024), 0)
    pty: PtySize | None = field(nullable(record(PtySize)), None)
    timeout_ms: int | None = field(nullable(integer(1, _U32)), None)
    label: str = field(text(LABEL_MAX_CHARACTERS), "")

    def __post_init__(self) -> None:
        if (self.script_index is None) != (self.script_size == 0):
            raise MessageInvalid("exec: script_index and script_size belong together")
        if self.script_index is not None and self.script_index >= len(self.argv):
            raise MessageInvalid("exec: script_index lies outside argv")

    @property
    def takes_data(self) -> bool:
        """True if standard input or a script follows."""
        return self.stdin or self.script_index is not None


@dataclass(frozen=True, slots=True)
class PutResult(Result):
    """A file was written, whole and verified."""

    NAME: ClassVar[str] = "put-result"
    size: int = field(integer(0, _U64))
    created: bool = field(boolean(), False)
    in_place: bool = field(boolean(), False)


@dataclass(frozen=True, slots=True)
class Put(Request):
    """Write a file; its bytes follow as DATA, END carries their number and digest.

    Attributes:
        path: the file; relative ones start at the home directory.
        mode: permission bits for the file, new or old; None lets the umask decide, or keeps what is there.
        in_place: write into the file that is there instead of renaming a new one over it.
        argv: run this and give it the verified bytes as standard input instead of writing `path`
            (a writer that sudo starts as somebody else); `env` as in exec.
    """

    NAME: ClassVar[str] = "put"
    RESULT: ClassVar[type[Result]] = PutResult
    path: bytes = field(_PATH)
    mode: int | None = field(nullable(integer(0, 0o7777)), None)
    in_place: bool = field(boolean(), False)
    argv: tuple[bytes, ...] | None = field(nullable(_ARGV), None)
    env: dict[bytes, bytes] | None = field(nullable(_VARIABLES), None)

    @property
    def takes_data(self) -> bool:
        """True: the file's bytes follow."""
        return True


@dataclass(frozen=True, slots=True)
class GetResult(Result):
    """A file was read to its end: what was sent."""

    NAME: ClassVar[str] = "get-result"
    size: int = field(integer(0, _U64))
    digest: bytes = field(binary(DIGEST_BYTES, least=DIGEST_BYTES))
    mode: int | None = field(nullable(integer(0, 0o7777)), None)


@dataclass(frozen=True, slots=True)
class Get(Request):
    """Read a file; its bytes arrive as DATA.

    Attributes:
        path: the file; relative ones start at the home directory.
        argv: run this and send its standard output instead of reading `path`; `env` as in exec.
        nonce: with `argv`: bytes that stand in front of the content; what a profile printed before
            them is thrown away.
    """

    NAME: ClassVar[str] = "get"
    RESULT: ClassVar[type[Result]] = GetResult
    GIVES_DATA: ClassVar[bool] = True
    path: bytes = field(_PATH)
    argv: tuple[bytes, ...] | None = field(nullable(_ARGV), None)
    env: dict[bytes, bytes] | None = field(nullable(_VARIABLES), None)
    nonce: bytes = field(binary(64), b"")


@dataclass(frozen=True, slots=True)
class StatResult(Result):
    """What a path is, or None if there is nothing."""

    NAME: ClassVar[str] = "stat-result"
    stat: dict[str, object] | None = field(nullable(mapping(32)))


@dataclass(frozen=True, slots=True)
class Stat(Request):
    """Look at a path without opening it."""

    NAME: ClassVar[str] = "stat"
    RESULT: ClassVar[type[Result]] = StatResult
    path: bytes = field(_PATH)
    follow: bool = field(boolean(), True)


@dataclass(frozen=True, slots=True)
class InfoResult(Result):
    """Facts about the agent and its machine, for display."""

    NAME: ClassVar[str] = "info-result"
    info: dict[str, object] = field(mapping(64))


@dataclass(frozen=True, slots=True)
class Info(Request):
    """Ask who the agent is."""

    NAME: ClassVar[str] = "info"
    RESULT: ClassVar[type[Result]] = InfoResult


@dataclass(frozen=True, slots=True)
class CloseSessionResult(Result):
    """The session is gone; the agent closes the link after this."""

    NAME: ClassVar[str] = "close-session-result"


@dataclass(frozen=True, slots=True)
class CloseSession(Request):
    """End the session now instead of keeping it for its time to live; its commands run on unobserved."""

    NAME: ClassVar[str] = "close-session"
    RESULT: ClassVar[type[Result]] = CloseSessionResult


#: What may be asked once a controller was welcomed; there is nothing that may be asked before.
REQUESTS: Final[dict[str, type[Request]]] = {kind.NAME: kind for kind in (Exec, Put, Get, Stat, Info, CloseSession)}


class Opening(NamedTuple):
    """What an OPEN frame says: the request, and what the agent may send on its channel before a CREDIT."""

    request: Request
    window: int


@dataclass(frozen=True, slots=True)
class _OpeningFields(Message):
    NAME: ClassVar[str] = "open"
    window: int = field(integer(WINDOW_INITIAL_BYTES, _U64), WINDOW_INITIAL_BYTES)


def encode_request(request: Request, window: int = WINDOW_INITIAL_BYTES) -> bytes:
    """Pack the body of an OPEN frame; *window* as in `Opening`.

    Bounds are left to the agent, which refuses this one request and may know more of them than we do.

    Raises:
        LocalProtocolError: it does not fit a frame, or a field is not packable.
    """
    fields = {"request": request.NAME, **request.to_fields()}
    if window != WINDOW_INITIAL_BYTES:
        fields["window"] = window
    return pack(request.NAME, fields)


def decode_request(data: bytes | bytearray) -> Opening:
    """Read the body of an OPEN frame.

    Raises:
        MessageInvalid: it is no request that this version knows; the text says why.
    """
    fields = decode_map(data)
    name = fields.get("request")
    if name is None:
        raise MessageInvalid("an OPEN without a request")
    kind = REQUESTS.get(name) if type(name) is str else None
    if kind is None:
        raise MessageInvalid(f"request {str(name)[:64]!r} is unknown to this version")
    opening = _OpeningFields.from_fields(fields)
    return Opening(kind.from_fields(fields), opening.window)
