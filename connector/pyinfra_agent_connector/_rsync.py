"""`files.rsync`: the real rsync on both sides, with this process's session as its remote shell.

The local rsync starts `rsh.py`, which hands rsync's streams over through an inherited socket.  That socket has no
name, serves one command and ends with it.  On the target the command runs in pyinfra's own wrapping (sudo, su, doas).
"""

from __future__ import annotations

import os
import shlex
import socket as blocking_socket
import sys
import weakref
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from shutil import which
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent import socket, subprocess
from gevent.event import Event
from gevent.os import nb_read
from pyinfra import logger
from pyinfra.api import StringCommand

from . import rsh
from ._argv import Invocation, build_invocation
from ._errors import AgentError, CommandTimeout, one_line
from ._interrupt import interrupts
from ._output import LazyCommandOutput, LinePrinter, echo
from ._processes import start_process
from ._remote_shell import read_chunks, run_as_shell, shell_line, writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ._argv import Wrap
    from ._call import Call
    from .client import AgentClient

__all__ = ["Rsync", "check_can_rsync", "wait_for_rsyncs"]

#: Stands for the target in the local rsync's arguments: the session knows where it is.
_TARGET: Final = "target"
#: What a shell answers where a program is not found (POSIX.1-2017, XCU 2.8.2).
_NOT_FOUND_EXIT: Final = 127
#: For either rsync to end when it was told to, and for what they have said to arrive.
_END_SECONDS: Final = 2.0
_READ_BYTES: Final = 64 * 1024

#: Arguments that speak of a command's run, and logins: what a profile prints would stand in rsync's protocol.
_NOT_ON_TARGET: Final = ("_get_pty", "_stdin", "_timeout", "_success_exit_codes", "_use_sudo_login", "_use_su_login")

#: An event for each run that has not ended, by the client that it uses.
_running: weakref.WeakKeyDictionary[AgentClient, set[Event]] = weakref.WeakKeyDictionary()


def check_can_rsync() -> None:
    """Return if there is an rsync on this machine.

    Raises:
        NotImplementedError: there is none; this is what pyinfra expects.
    """
    if which("rsync") is None:
        raise NotImplementedError(
            "The `rsync` binary is not available on this system: install rsync here, where pyinfra runs."
        )


@dataclass(frozen=True, slots=True)
class Rsync:
    """One run of rsync, from this machine to an agent's.

    Attributes:
        src: local path.  With `dest` it reaches rsync as it is: no shell sees it, none expands `*` or `~`.
        dest: path on the target.
        flags: options of rsync, each split and unquoted as a shell would do it, because @ssh lets one do it.
        print_prefix: in front of each line that is printed.
        print_output: print what rsync says, as it says it.
        print_input: print the commands.
    """

    src: str
    dest: str
    flags: Iterable[str]
    print_prefix: str = ""
    print_output: bool = False
    print_input: bool = False

    def run(self, client: AgentClient, wrap: Wrap, arguments: Mapping[str, Any]) -> tuple[int, LazyCommandOutput]:
        """Run it once; return rsync's exit status, and what it and its other side have said.

        Args:
            client: of the agent.
            wrap: makes the command that pyinfra would hand to a shell; see `_argv.Wrap`.
            arguments: pyinfra's connector arguments.

        Raises:
            AgentError: the agent was lost or refused the command, or there is no rsync on the target.
            CommandTimeout: `_timeout` seconds were over.
        """
        output = LazyCommandOutput()
        printer = LinePrinter(self.print_prefix) if self.print_output else None

        def on_output(stream: Any, data: bytes) -> None:  # noqa: ANN401 - one of the two stream names
            output.feed(stream, data)
            if printer is not None:
                printer.feed(stream, data)

        def serve(line: str, stdin: int, stdout: int, on_start: Callable[[Call], object]) -> int:
            invocation = _invocation(wrap, line, arguments)
            self._show(invocation.masked)
            return run_as_shell(
                client,
                invocation.argv,
                env=invocation.env,
                stdin=read_chunks(stdin, shared=False),
                on_stdout=writer(stdout, shared=False),
                on_stderr=lambda data: on_output("stderr", data),
                on_start=on_start,
                what="rsync",
            )

        port = f"pyinfra-agent rsh -p {client.endpoint.port}"
        host = f"[{client.endpoint.host}]" if ":" in client.endpoint.host else client.endpoint.host
        self._show(shlex.join(self._argv(port, host)))
        timeout = arguments.get("_timeout")
        with _noted(client), _Door(serve) as door:
            status = _run_local(self._argv(_shell(), _TARGET), door, on_output, timeout)
        if printer is not None:
            printer.finish()
        if status is None:
            raise CommandTimeout(f"rsync did not end within {timeout} s and was killed", output)
        if door.error is not None:
            raise door.error
        if door.status == _NOT_FOUND_EXIT:
            said = one_line(output.stderr.partition("\n")[0])
            raise AgentError(f"{client.endpoint}: there is no rsync on that machine, install it there ({said})")
        logger.debug("rsync exit status: %s", status)
        return status, output

    def _show(self, command: str) -> None:
        logger.debug("Running rsync: %s", command)
        if self.print_input:
            echo(f"{self.print_prefix}>>> {command}", err=True)

    def _argv(self, shell: str, host: str) -> list[str]:
        flags = [word for flag in self.flags for word in _split(flag)]
        return ["rsync", *flags, "--rsh", shell, _as_local(self.src), f"{host}:{_as_relative(self.dest)}"]


def _split(flag: str) -> list[str]:
    try:
        return shlex.split(flag)
    except ValueError as error:
        raise AgentError(f"the flag {flag!r} of files.rsync cannot be read: {error}; quote it as for a shell") from None


def wait_for_rsyncs(client: AgentClient) -> None:
    """Wait until no rsync uses *client*, two seconds at most: before it is closed.

    At Ctrl-C pyinfra leaves a host while rsync is still ending there. With the session the agent would kill it at once,
    and its temporary file would stay.
    """
    gevent.wait(tuple(_running.get(client, ())), timeout=_END_SECONDS)


@contextmanager
def _noted(client: AgentClient) -> Iterator[None]:
    ended = Event()
    events = _running.setdefault(client, set())
    events.add(ended)
    try:
        yield
    finally:
        events.discard(ended)
        ended.set()


def _as_local(path: str) -> str:
    """Return *path* so that rsync takes it neither for an option nor for another host's."""
    return f"./{path}" if path.startswith("-") or ":" in path.partition("/")[0] else path


def _as_relative(path: str) -> str:
    """Return *path* so that no second colon follows that of the host, which would ask for a daemon."""
    return f"./{path}" if path.startswith(":") else path


def _shell() -> str:
    """Return rsync's remote shell: `rsh.py` on the bare interpreter.

    A file and not a module, because importing the package would cost more than all that it does.
    """
    return " ".join(map(_quoted, (sys.executable, "-I", "-S", rsh.__file__)))


def _quoted(word: str) -> str:
    """Quote as rsync reads its option -e: a doubled quote within quotes stands for one."""
    doubled = word.replace("'", "''")
    return f"'{doubled}'"


def _invocation(wrap: Wrap, line: str, arguments: Mapping[str, Any]) -> Invocation:
    """Return what runs the shell command *line*, whose standard input is rsync's, on the target."""
    arguments = {name: value for name, value in arguments.items() if name not in _NOT_ON_TARGET}
    if arguments.get("_su_user") and arguments.get("_su_password"):
        # su reads the password from its standard input.
        invocation = build_invocation(wrap, StringCommand(line, "<&3"), arguments)
        *shell, raw = invocation.argv
        return Invocation([*shell, f"exec 3<&0; {raw}"], invocation.env, invocation.masked)
    return build_invocation(wrap, StringCommand(line), arguments)


def _run_local(
    argv: list[str], door: _Door, on_output: Callable[[str, bytes], None], timeout: float | None
) -> int | None:
    """Run the local rsync to its end; return its status, or None if it did not end in time."""
    number = door.outside.fileno()
    process = start_process(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, rsh.SOCKET_VARIABLE: str(number)},
        pass_fds=[number],
    )
    door.outside.close()
    failures: list[Exception] = []

    def read(stream: str, descriptor: int) -> None:
        try:
            while data := nb_read(descriptor, _READ_BYTES):
                on_output(stream, data)
        except Exception as error:
            failures.append(error)  # the terminal is closed, for example
            process.terminate()

    pipes = {"stdout": process.stdout, "stderr": process.stderr}
    readers = [gevent.spawn(read, stream, pipe.fileno()) for stream, pipe in pipes.items()]
    status: int | None = None
    try:
        with interrupts.interruptible(), gevent.Timeout(timeout, False):
            status = process.wait()
    finally:
        if status is None:
            _end(process)
        door.close()  # its shell may have rsync's standard error open
        gevent.joinall(readers, timeout=_END_SECONDS)
        gevent.killall(readers)
        for pipe in pipes.values():
            pipe.close()
    if failures:
        raise failures[0]
    return status


def _end(process: Any) -> None:  # noqa: ANN401 - gevent has no types
    process.terminate()
    with gevent.Timeout(_END_SECONDS, False):
        process.wait()
    if process.poll() is None:
        process.kill()
        process.wait()


class _Door:
    """Where the local rsync's remote shell hands its streams in, to have one command run.

    Args:
        serve: runs a shell's command line between two descriptors, calls a function with the request, returns the
            status.

    Attributes:
        outside: the socket that rsync inherits.
        status: of the command on the target, once it has ended.
        error: why there is no status.
    """

    def __init__(self, serve: Callable[[str, int, int, Callable[[Call], object]], int]) -> None:
        self._run = serve
        self._inside, self.outside = socket.socketpair()
        self.status: int | None = None
        self.error: Exception | None = None
        self._call: Call | None = None
        self._shell: Any = None
        self._serving = gevent.spawn(self._serve)

    def __enter__(self) -> _Door:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let nobody in any more; a command that still runs is cancelled, and has two seconds to end."""
        # Not killed, in which case it could not wait for the command's end: its sockets end, and so does it.
        for sock in (self._inside, self._shell):
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self._serving.join()
        self._inside.close()
        self.outside.close()

    def _serve(self) -> None:
        # A shell that dies breaks these sockets: rsync tells why, or is told by the end of its streams.
        with suppress(OSError), ExitStack() as stack:
            _, descriptors, _, _ = blocking_socket.recv_fds(self._inside, 1, 3)
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
                stack.callback(os.close, descriptor)
            if len(descriptors) != 3:
                return
            stdin, stdout, own = descriptors
            self._shell = shell = stack.enter_context(socket.socket(fileno=os.dup(own)))
            size = int.from_bytes(_receive(shell, rsh.LENGTH_BYTES), "big")
            # The host's name comes first.
            _, *words = os.fsdecode(_receive(shell, size)).split("\0")
            running = gevent.spawn(self._answer, shell_line(words), stdin, stdout)
            stack.callback(self._end, running)
            # It sends no more: an answer is its end.
            watching = gevent.spawn(_wait_for_end, shell)
            stack.callback(watching.kill)
            gevent.wait((running, watching), count=1)
            if running.ready():
                shell.sendall(bytes([rsh.FAILED if self.status is None else self.status]))

    def _answer(self, line: str, stdin: int, stdout: int) -> None:
        try:
            # Ctrl-C ends the local rsync, and that ends this: the one on the target has a temporary file to remove.
            with interrupts.leaving():
                self.status = self._run(line, stdin, stdout, self._note_start)
        except ConnectionResetError:
            pass  # rsync was the first to go, and its status tells
        except Exception as error:
            self.error = error

    def _note_start(self, call: Call) -> None:
        self._call = call

    def _end(self, running: Any) -> None:  # noqa: ANN401 - gevent has no types
        if self._call is not None and not running.ready():
            self._call.cancel()
            running.join(_END_SECONDS)
        running.kill()


def _receive(sock: Any, size: int) -> bytes:  # noqa: ANN401 - gevent has no types
    data = bytearray()
    while len(data) < size:
        if not (more := sock.recv(min(size - len(data), _READ_BYTES))):
            raise ConnectionResetError("the remote shell ended")
        data += more
    return bytes(data)


def _wait_for_end(sock: Any) -> None:  # noqa: ANN401 - gevent has no types
    with suppress(OSError):
        sock.recv(1)
