"""A client for one agent: run commands, move files, ask what is there.  For greenlets.

    client = AgentClient("web1", 7963, identity=load_or_create(agent_home()), check_key=...)
    client.connect()
    finished = client.run(["uname", "-a"], on_output=lambda stream, data: ...)
    client.close()

Every method raises OSErrors only (`_errors`), each with a line that names the agent and says what to do.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, Final, cast

import gevent

from pyinfra_agent_protocol import (
    Digest,
    Exec,
    ExecResult,
    Get,
    GetResult,
    Info,
    InfoResult,
    Put,
    PutResult,
    Stat,
    StatResult,
)

from ._connection import Connection
from ._errors import AgentError, Refused
from ._link import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pyinfra_agent_protocol import PtySize

    from ._call import Call
    from ._identity import Identity

__all__ = ["AgentClient"]

CONNECT_SECONDS: Final = 10.0
RESUME_SECONDS: Final = 60.0

#: Arguments longer than this travel as data: a frame holds 64 KiB in all.
_LONG_ARGUMENT_BYTES: Final = 32 * 1024

_STREAMS: Final = ("stdout", "stderr")


class AgentClient:
    """One agent, reached by one session.

    Args:
        host, port: where it listens.
        identity: this controller's key.
        check_key: called with the agent's key before anything of ours is sent; raises to refuse it.
        connect_seconds: for a connection to be welcomed.
        resume_seconds: how long a lost connection is tried to be resumed.
        notify: gets a line for the user when the connection is lost and when it is back.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        identity: Identity,
        check_key: Callable[[bytes], None],
        connect_seconds: float = CONNECT_SECONDS,
        resume_seconds: float = RESUME_SECONDS,
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.endpoint = Endpoint(host, port)
        self._connection = Connection(
            self.endpoint,
            identity.keypair,
            identity.comment,
            check_key,
            connect_seconds=connect_seconds,
            resume_seconds=resume_seconds,
            notify=notify,
        )
        # The link's greenlets keep the connection alive, and nothing keeps the client: once nobody has it, they end.
        # At exit connections are closed with a word to their agents, so this is not wanted there.
        weakref.finalize(self, self._connection.drop).atexit = False

    @property
    def is_connected(self) -> bool:
        """True while a link carries the session."""
        return self._connection.is_connected

    @property
    def user(self) -> str:
        """Name of the user that the agent runs as; "" before the first connection."""
        welcome = self._connection.welcome
        return welcome.user if welcome is not None else ""

    def connect(self) -> None:
        """Connect; returns when the agent has let this controller in."""
        self._connection.connect()

    def close(self) -> None:
        """End the session; takes a second at most."""
        self._connection.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bytes | Iterable[bytes] | None = None,
        pty: PtySize | None = None,
        timeout_seconds: float | None = None,
        on_output: Callable[[str, bytes], None] = lambda stream, data: None,
        what: str = "the command",
    ) -> ExecResult:
        """Run a command and wait for its end.

        Args:
            argv: the program and its arguments.
            env: variables on top of the agent's own.
            cwd: where it starts; None is the home directory.
            stdin: bytes, or an iterable of them that is read while the command runs.
            pty: run it in a terminal of this size.
            timeout_seconds: after which the agent ends the command and all that it started.
            on_output: gets "stdout" or "stderr" and bytes, as they arrive.
            what: the command in a person's words, for errors.
        """
        words = [os.fsencode(word) for word in argv]
        index, script = _take_long_argument(words)
        request = Exec(
            argv=tuple(words),
            env={os.fsencode(name): os.fsencode(value) for name, value in env.items()} if env else None,
            cwd=os.fsencode(cwd) if cwd is not None else None,
            stdin=stdin is not None,
            script_index=index,
            script_size=len(script),
            pty=pty,
            timeout_ms=max(1, round(timeout_seconds * 1000)) if timeout_seconds else None,
        )
        with self._connection.call(request, what) as call:
            feeder = _Feeder.start(call, script, stdin)
            try:
                while events := call.receive():
                    for event in events:
                        on_output(_STREAMS[event.stream], event.data)
                result = cast("ExecResult", call.result())
            except Refused:
                feeder.check()  # it cancels the request, and says why better than the refusal does
                raise
            finally:
                feeder.stop()
            feeder.check()
            return result

    def put(
        self,
        chunks: Iterable[bytes],
        path: str,
        *,
        mode: int | None = None,
        in_place: bool = False,
        argv: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> PutResult:
        """Write *chunks* to *path* on the agent, whole or not at all; with *argv*, through that command."""
        request = Put(
            path=os.fsencode(path),
            mode=mode,
            in_place=in_place,
            argv=tuple(map(os.fsencode, argv)) if argv is not None else None,
            env={os.fsencode(name): os.fsencode(value) for name, value in env.items()} if env else None,
        )
        digest = Digest()
        size = 0
        with self._connection.call(request, f"writing {path}") as call:
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                if not call.send(chunk):
                    break
            call.end(size=size, digest=digest.digest())
            return cast("PutResult", call.result())

    def get(
        self,
        path: str,
        write: Callable[[bytes], object],
        *,
        argv: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        nonce: bytes = b"",
    ) -> GetResult:
        """Read *path* on the agent and *write* it; with *argv*, what that command prints after *nonce*.

        Raises:
            AgentError: also when what arrived is not what was sent; then what was written must not be used.
        """
        request = Get(
            path=os.fsencode(path),
            argv=tuple(map(os.fsencode, argv)) if argv is not None else None,
            env={os.fsencode(name): os.fsencode(value) for name, value in env.items()} if env else None,
            nonce=nonce,
        )
        digest = Digest()
        size = 0
        with self._connection.call(request, f"reading {path}") as call:
            while events := call.receive():
                for event in events:
                    digest.update(event.data)
                    size += len(event.data)
                    write(event.data)
            result = cast("GetResult", call.result())
        if (result.size, result.digest) != (size, digest.digest()):
            raise AgentError(f"{self.endpoint}: {path} did not arrive as it was sent: try again")
        return result

    def stat(self, path: str, *, follow: bool = True) -> dict[str, object] | None:
        """Look at *path*: its type, mode, owner, size and so on, or None if nothing is there."""
        with self._connection.call(Stat(os.fsencode(path), follow), f"looking at {path}") as call:
            return cast("StatResult", call.result()).stat

    def info(self) -> dict[str, object]:
        """Ask the agent who it is."""
        with self._connection.call(Info(), "asking who the agent is") as call:
            return cast("InfoResult", call.result()).info


class _Feeder:
    """A greenlet that sends a command's standard input while its output is read."""

    def __init__(self, call: Call, script: bytes, stdin: bytes | Iterable[bytes] | None) -> None:
        self._call = call
        self._script = script
        self._stdin = stdin
        self._error: BaseException | None = None
        self._greenlet: Any = None

    @classmethod
    def start(cls, call: Call, script: bytes, stdin: bytes | Iterable[bytes] | None) -> _Feeder:
        """Send what can be sent at once, and spawn a greenlet for the rest."""
        feeder = cls(call, script, stdin)
        if isinstance(stdin, bytes) and len(script) + len(stdin) <= _LONG_ARGUMENT_BYTES:
            feeder._run()  # fits the first flight: no greenlet, no further round trip
        elif script or stdin is not None:
            feeder._greenlet = gevent.spawn(feeder._run)
        return feeder

    def stop(self) -> None:
        """Send no more."""
        if self._greenlet is not None:
            self._greenlet.kill()

    def check(self) -> None:
        """Raise, as an OSError, what reading the input raised: the command has seen less than it should have."""
        if isinstance(self._error, OSError):
            raise self._error
        if self._error is not None:
            text = f"the input of {self._call.what} could not be read, and it was cancelled: {self._error!r}"
            raise AgentError(text) from self._error

    def _run(self) -> None:
        call = self._call
        try:
            if self._script and not call.send(self._script):
                return
            for chunk in (self._stdin,) if isinstance(self._stdin, bytes) else self._stdin or ():
                if not call.send(chunk):
                    return
            call.end()
        except (Exception, gevent.Timeout) as error:
            self._error = error
            call.cancel()


def _take_long_argument(words: list[bytes]) -> tuple[int | None, bytes]:
    """Take the longest argument out of *words* if it is too long for the request's own frame."""
    index = max(range(len(words)), key=lambda number: len(words[number]), default=0)
    if not words or len(words[index]) <= _LONG_ARGUMENT_BYTES:
        return None, b""
    script, words[index] = words[index], b""
    return index, script
