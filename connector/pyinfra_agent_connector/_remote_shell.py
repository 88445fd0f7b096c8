"""A command on an agent between descriptors of this process, as a remote shell runs it; and `pyinfra-agent rsh`."""

from __future__ import annotations

import argparse
import os
import re
import signal
import stat
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

import gevent
from gevent.os import make_nonblocking, nb_read, nb_write, tp_read, tp_write

from ._errors import AgentError
from ._identity import IdentityError, agent_home, load_or_create
from ._known import UntrustedAgent
from ._names import BadAgentName, NameKind, parse_agent_name, pin_name
from ._trust import AgentTrust
from .client import AgentClient
from .rsh import FAILED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ._call import Call

__all__ = ["by_hand", "read_chunks", "run_as_shell", "shell_line", "writer"]

_CHUNK_BYTES: Final = 256 * 1024
#: A shell reports death by signal N as this and N (POSIX.1-2017, XCU 2.8.2).
_SIGNAL_EXIT: Final = 128
_PROGRAM: Final = re.compile(r"[\w./+-]+")
#: For a cancelled command to end by itself.
_END_SECONDS: Final = 2.0


def run_as_shell(
    client: AgentClient,
    argv: Sequence[str],
    *,
    stdin: Iterable[bytes],
    on_stdout: Callable[[bytes], object],
    on_stderr: Callable[[bytes], object],
    on_start: Callable[[Call], object],
    env: Mapping[str, str] | None = None,
    what: str,
) -> int:
    """Run a command; return its status as a shell would report it.  Arguments and errors are `AgentClient.run`'s.

    What *on_stdout* does not take holds the command up: no more than the session's window is in memory. Once it finds
    that nobody reads, the command is cancelled; this waits for its end, because rsync has a temporary file to remove.
    """
    calls: list[Call] = []
    is_read = True

    def note_start(call: Call) -> None:
        calls.append(call)
        on_start(call)

    def on_output(stream: str, data: bytes) -> None:
        nonlocal is_read
        if stream != "stdout":
            on_stderr(data)
        elif is_read:
            try:
                on_stdout(data)
            except (BrokenPipeError, ConnectionResetError):
                is_read = False
                calls[0].cancel()

    ended = client.run(argv, env=env, stdin=stdin, on_output=on_output, on_start=note_start, what=what, label=what)
    return ended.exit if ended.exit is not None else _SIGNAL_EXIT + (ended.signal or 0)


def shell_line(words: Sequence[str]) -> str:
    """Return what a shell is to run for a remote shell's *words*, which rsync has quoted for it, as with ssh.

    An rsync takes the shell's place: as the command's main process it has its time to clean up when it is cancelled.
    """
    line = " ".join(words)
    is_rsync = words[1:2] == ["--server"] and _PROGRAM.fullmatch(words[0])
    return f"exec {line}" if is_rsync else line


def read_chunks(descriptor: int, *, shared: bool) -> Iterator[bytes]:
    """Give what comes from *descriptor*, until its end; other greenlets run meanwhile.

    A *shared* one is a terminal or a pipe that other programs have open too, and is not made non-blocking, with which
    they could not cope: a thread waits for it.
    """
    if not shared:
        make_nonblocking(descriptor)
    read = tp_read if shared else nb_read
    while data := read(descriptor, _CHUNK_BYTES):
        yield data


def writer(descriptor: int, *, shared: bool) -> Callable[[bytes], None]:
    """Return what writes to *descriptor*, waiting until everything is taken; *shared* as for `read_chunks`."""
    if not shared:
        make_nonblocking(descriptor)
    write = tp_write if shared else nb_write

    def write_all(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[write(descriptor, view) :]

    return write_all


# --- the subcommand ---


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _SignalledError(Exception):
    """A signal has asked this process to end."""


class _Signals:
    """Let the signals by which rsync and terminals end a process cancel the command, and wait a little for its end.

    Attributes:
        number: of the first that came, or None.
        call: the command's, once it has started.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.call: Call | None = None
        self._main = gevent.getcurrent()
        self._timer: Any = None

    def __enter__(self) -> _Signals:
        numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._watchers = [gevent.signal_handler(number, self._on_signal, number) for number in numbers]
        return self

    def __exit__(self, *_: object) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        if self._timer is not None:
            self._timer.kill()

    def _on_signal(self, number: int) -> None:
        is_first, self.number = self.number is None, number
        if is_first and self.call is not None:
            self.call.cancel()
            self._timer = gevent.spawn_later(_END_SECONDS, self._give_up)
        else:
            self._give_up()

    def _give_up(self) -> None:
        gevent.kill(self._main, _SignalledError)


def by_hand(argv: Sequence[str]) -> int:
    """Run a command on an agent over a connection of its own; errors are lines on standard error."""
    parser = _Parser(
        prog="pyinfra-agent rsh",
        description="Run COMMAND in a shell on the machine of an agent: for rsync -e 'pyinfra-agent rsh' SRC HOST:DST.",
        epilog="rsync takes what stands before the first colon for the host. For another port write '[HOST:PORT]:DST'"
        " or -e 'pyinfra-agent rsh -p PORT', for an IPv6 address '[2001:db8::1]:DST'.",
    )
    parser.add_argument("-l", dest="user", metavar="USER", help="fail unless the agent runs as this user")
    parser.add_argument("-p", dest="port", metavar="PORT", help="the agent's port, where HOST does not name one")
    parser.add_argument("host", metavar="HOST", help="as after @agent/ in an inventory")
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER)
    arguments = parser.parse_args(argv)
    if not arguments.command:
        parser.error("there is no COMMAND to run")
    status = FAILED
    signals = _Signals()
    try:
        with signals:
            client = _client_of(arguments.host, arguments.port)
            status = _run_by_hand(client, arguments.user, arguments.command, signals)
    except _SignalledError:
        pass
    except (AgentError, UntrustedAgent, IdentityError, BadAgentName) as error:
        _say(str(error))
    except OSError as error:
        _say(f"standard input or output broke: {error.strerror}")
    return status if signals.number is None else _SIGNAL_EXIT + signals.number


def _client_of(host: str, port: str | None) -> AgentClient:
    if port is None:
        text = host
    else:  # rsync has taken the brackets off an IPv6 address
        text = f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
    name = parse_agent_name(text)
    if name.kind is not NameKind.AGENT:
        raise BadAgentName(f"{text!r} does not name one agent: write HOST or HOST:PORT")
    pin_name(name.host, name.port)  # raises what the checker would raise in the middle of a handshake
    home = agent_home()
    trust = AgentTrust(home, name.host, name.port, "accept-new", None)
    return AgentClient(
        name.host,
        name.port,
        identity=load_or_create(home),
        check_key=trust.check,
        learn_key=trust.learn,
        notify=_say,
    )


def _run_by_hand(client: AgentClient, user: str | None, command: list[str], signals: _Signals) -> int:
    client.connect()
    try:
        if user not in (None, client.user):
            raise AgentError(
                f"the agent at {client.endpoint} runs as {client.user}, not as {user}: leave {user}@ out, or become"
                f" {user} there with rsync's --rsync-path 'sudo -u {user} rsync'"
            )
        return run_as_shell(
            client,
            ["sh", "-c", shell_line(command)],
            stdin=read_chunks(0, shared=_is_shared(0)),
            on_stdout=writer(1, shared=_is_shared(1)),
            on_stderr=writer(2, shared=True),
            on_start=partial(setattr, signals, "call"),
            what="the command",
        )
    finally:
        client.close()


def _is_shared(descriptor: int) -> bool:
    """Return False for a socket: rsync makes two for its remote shell alone."""
    return not stat.S_ISSOCK(os.fstat(descriptor).st_mode)


def _say(text: str) -> None:
    print(f"pyinfra-agent rsh: {text}", file=sys.stderr)
