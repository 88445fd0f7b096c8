"""`pyinfra-agent exec HOST -- CMD...`: one command on an agent, between this process's standard streams, as with ssh.

With a terminal the local one is raw and every key goes to the command's, where Ctrl-C and Ctrl-Z mean what they mean
there; only while the connection is lost does Ctrl-C end this process. Without a terminal the signals that ask a process
to end are passed on to the command's process group, and stopping and continuing this process stops and continues that
group. Where a signal cannot be passed on, because the connection is lost, or came three times within two seconds, it
ends this process: the terminal is restored, and the command is cancelled if it can be reached.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pyinfra_agent_protocol import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ._call import Call
    from .client import AgentClient

__all__ = ["exec_command"]

_FAILED: Final = 255
#: A shell reports death by signal N as this and N (POSIX.1-2017, XCU 2.8.2).
_SIGNAL_EXIT: Final = 128

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
# The target counts, and that is Linux (signal(7), x86 and ARM); a controller may be of another system. SIGSTOP and not
# SIGTSTP, which the kernel ignores for a process group without a shell in its session.
_TARGET_SIGCONT: Final = 18
_TARGET_SIGSTOP: Final = 19

_CTRL_C: Final = b"\x03"

#: The same signal so many times within so many seconds ends this process, whatever the command does.
_IMPATIENT_TIMES: Final = 3
_IMPATIENT_SECONDS: Final = 2.0
#: For a signal to be written to the network before this process stops.
_FLUSH_SECONDS: Final = 0.05
_TIMEOUT_MAX_SECONDS: Final = (2**32 - 1) / 1000

_EPILOG: Final = """\
Exactly CMD and its arguments run, without a shell: for pipes, variables or several
commands write HOST -- sh -c 'COMMAND LINE'. CMD starts in the home directory of the
user that the agent runs as, with the environment of a login and what --env adds.

Standard input, output and error are the command's, byte for byte; for no input write
< /dev/null. In a terminal (see -t) every key goes to the command, Ctrl-C and Ctrl-Z too;
while the connection is lost Ctrl-C ends this process, and CMD runs on. Without one
SIGINT, SIGTERM, SIGQUIT and SIGHUP are passed on to CMD, and Ctrl-Z stops CMD and this
process; the same signal three times within two seconds kills CMD.

Exit status: that of CMD; 128+N if signal N ended it; 255 if it could not be run, its
connection was lost or its time was over, with one line on standard error.
"""


@dataclass(frozen=True, slots=True)
class _Options:
    host: str
    command: list[str]
    env: Mapping[str, str]
    chdir: str | None
    timeout_seconds: float | None
    pty: bool
    home: str | None
    trust: str


class _NobodyReads(Exception):
    """Standard output or error was closed by whoever read it."""


def exec_command(argv: Sequence[str]) -> int:
    """Run one command on an agent; returns the exit status."""
    options = _parse(argv)
    # After the arguments: --help needs none of this.
    from ._terminal import fill_standard_streams

    fill_standard_streams()
    return _Run(options).until_over()


class _Run:
    """One command, from the connection to the exit status."""

    def __init__(self, options: _Options) -> None:
        from gevent.event import AsyncResult

        from ._terminal import RawTerminal

        self._options = options
        self._terminal = RawTerminal(0)
        self._client: AgentClient | None = None
        self._call: Call | None = None
        #: The status with which this process ends before the command does.
        self._ended = AsyncResult()
        self._signals: deque[tuple[int, float]] = deque(maxlen=_IMPATIENT_TIMES)

    def until_over(self) -> int:
        """Run it; print why if it cannot be run."""
        import gevent

        # A greenlet of its own: whatever ends this process, killing it cancels the command.
        runner = gevent.spawn(self._run_fenced)
        try:
            with self._watched_signals():
                gevent.wait([runner, self._ended], count=1)
                if not runner.ready():
                    runner.kill()
        finally:
            self._terminal.restore()
        outcome = self._ended.value if self._ended.ready() else runner.value
        if isinstance(outcome, int):
            return outcome
        if isinstance(outcome, _NobodyReads):
            return _SIGNAL_EXIT + signal.SIGPIPE
        self._say(str(outcome))
        return _FAILED

    def _say(self, text: str) -> None:
        # A raw terminal does not go back to its left edge by itself.
        line_end = "\r\n" if self._terminal.is_raw else "\n"
        with suppress(OSError):
            print(f"pyinfra-agent: {text}", end=line_end, file=sys.stderr, flush=True)

    # --- in the greenlet of the command ---

    def _run_fenced(self) -> int | Exception:
        from ._identity import IdentityError
        from ._known import UntrustedAgent
        from ._names import BadAgentName

        try:
            with self._connected() as client:
                return self._run(client)
        except (OSError, UntrustedAgent, IdentityError, BadAgentName, _NobodyReads) as error:
            return error

    @contextmanager
    def _connected(self) -> Iterator[AgentClient]:
        from ._identity import agent_home, load_or_create
        from ._names import BadAgentName, NameKind, parse_agent_name, pin_name
        from ._trust import AgentTrust
        from .client import AgentClient

        name = parse_agent_name(self._options.host.removeprefix("@agent/"))
        home = agent_home(self._options.home)
        make = partial(AgentClient, notify=self._say)
        loopback = None
        if name.kind is NameKind.LOOPBACK:
            from ._loopback import start_loopback

            loopback = start_loopback()
            trust = AgentTrust(home, "127.0.0.1", loopback.port, "strict", loopback.key_line)
            client = make("127.0.0.1", loopback.port, identity=loopback.identity, check_key=trust.check)
        elif name.kind is NameKind.AGENT:
            pin_name(name.host, name.port)  # raises what the checker would raise in the middle of a handshake
            trust = AgentTrust(home, name.host, name.port, self._options.trust, None)
            make = partial(make, check_key=trust.check, learn_key=trust.learn)
            client = make(name.host, name.port, identity=load_or_create(home))
        else:
            raise BadAgentName(f"{self._options.host!r} does not name one agent: write HOST, HOST:PORT or loopback")
        try:
            client.connect()
            self._client = client
            yield client
        finally:
            self._client = None
            client.close()
            if loopback is not None:
                loopback.stop()

    def _run(self, client: AgentClient) -> int:
        from ._terminal import terminal_size, writer

        options = self._options
        outputs = {"stdout": ("output", writer(1)), "stderr": ("error", writer(2))}

        def on_output(stream: str, data: bytes) -> None:
            name, write = outputs[stream]
            try:
                write(data)
            except BrokenPipeError:
                raise _NobodyReads from None
            except OSError as error:
                raise OSError(f"standard {name} cannot be written: {error.strerror}") from error

        ended = client.run(
            options.command,
            env=options.env,
            cwd=options.chdir,
            stdin=self._input(client),
            pty=terminal_size() if options.pty else None,
            timeout_seconds=options.timeout_seconds,
            on_start=self._begin,
            on_output=on_output,
            what=options.command[0],
            # What follows it may hold a secret.
            label=options.command[0],
        )
        self._call = None
        if ended.reason == "timeout":
            raise TimeoutError(f"{options.command[0]} did not end within {options.timeout_seconds:g} s and was killed")
        return ended.exit if ended.exit is not None else _SIGNAL_EXIT + (ended.signal or 0)

    def _input(self, client: AgentClient) -> Iterator[bytes]:
        from ._terminal import read_input

        for data in read_input(0):
            if self._terminal.is_raw and not client.is_connected and _CTRL_C in data:
                # Nobody is there to obey, and it could not be typed anywhere else.
                self._ended.set(_SIGNAL_EXIT + signal.SIGINT)
                return
            yield data

    def _begin(self, call: Call) -> None:
        self._call = call
        if self._options.pty:
            self._terminal.make_raw()

    # --- in greenlets of signals ---

    @contextmanager
    def _watched_signals(self) -> Iterator[None]:
        import gevent

        handlers: dict[int, Any] = {number: partial(self._pass_on, number) for number in _ENDING}
        handlers |= {signal.SIGTSTP: self._stop, signal.SIGCONT: self._continue, signal.SIGWINCH: self._resize}
        # What whoever started this process ignores, as nohup does, stays ignored.
        watchers = [
            gevent.signal_handler(number, handler)
            for number, handler in handlers.items()
            if signal.getsignal(number) is not signal.SIG_IGN
        ]
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.cancel()

    def _pass_on(self, number: int) -> None:
        now = time.monotonic()
        self._signals.append((number, now))
        recent = [past for past, when in self._signals if past == number and now - when < _IMPATIENT_SECONDS]
        is_urgent = len(recent) == _IMPATIENT_TIMES
        # With a terminal keys are no signals: somebody means this process.
        if self._options.pty or is_urgent or not self._send_signal(number):
            self._ended.set(_SIGNAL_EXIT + number)

    def _stop(self) -> None:
        import gevent

        if not self._options.pty and self._send_signal(_TARGET_SIGSTOP):
            gevent.sleep(_FLUSH_SECONDS)
        self._terminal.restore()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _continue(self) -> None:
        if not self._options.pty:
            self._send_signal(_TARGET_SIGCONT)
        elif self._call is not None:
            self._terminal.make_raw()
            self._resize()

    def _send_signal(self, number: int) -> bool:
        if self._call is None or self._client is None or not self._client.is_connected:
            return False
        self._call.signal(number)
        return True

    def _resize(self) -> None:
        from ._terminal import terminal_size

        if self._options.pty and self._call is not None:
            size = terminal_size()
            with suppress(LocalProtocolError):  # there is no session any more
                self._call.resize(size.rows, size.columns)


# --- arguments ---


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # As ssh: any other status may be the command's.
        self.exit(_FAILED, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parse(argv: Sequence[str]) -> _Options:
    parser = _Parser(
        prog="pyinfra-agent exec",
        usage="%(prog)s [OPTION...] HOST -- CMD [ARG...]",
        description="Run one command on an agent.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("host", metavar="HOST", help="as after @agent/ in an inventory: HOST, HOST:PORT, loopback")
    terminal = parser.add_mutually_exclusive_group()
    terminal.add_argument(
        "-t",
        dest="pty",
        action="store_true",
        default=None,
        help="run CMD in a terminal (default: if standard input and output are one)",
    )
    terminal.add_argument("-T", dest="pty", action="store_false", help="do not run CMD in a terminal")
    parser.add_argument("--chdir", metavar="DIR", help="start there; relative to the home directory")
    parser.add_argument(
        "--env", metavar="NAME=VALUE", action="append", default=[], type=_variable, help="set a variable, repeatable"
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, help="kill CMD and all that it started after this time"
    )
    parser.add_argument("--home", metavar="DIR", help="this controller's key and known_agents (default: as agent_home)")
    parser.add_argument(
        "--trust",
        choices=("strict", "accept-new", "ca"),
        default="accept-new",
        help="what to do with an agent that is not known, as host data agent_trust (default: accept-new)",
    )
    words = list(argv)
    separator = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:separator])
    command = words[separator + 1 :]
    if not command or not command[0]:
        parser.error("the command stands after --: HOST -- CMD [ARG...]")
    return _Options(
        host=arguments.host,
        command=command,
        env=dict(arguments.env),
        chdir=arguments.chdir,
        timeout_seconds=arguments.timeout,
        pty=arguments.pty if arguments.pty is not None else os.isatty(0) and os.isatty(1),
        home=arguments.home,
        trust=arguments.trust,
    )


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _TIMEOUT_MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds
