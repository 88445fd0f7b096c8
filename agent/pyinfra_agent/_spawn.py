"""Starting one command: pipes or a terminal, a session of its own, and facts about what failed.

What the child inherits is settled here or by the agent as a whole:

- session and process group are its own; every descriptor but 0, 1, 2 and the ones asked for is closed;
- SIGPIPE and SIGXFSZ, which Python ignores, get their default back. Handlers vanish on exec.
  `inherit_nothing_of_the_agent` does the rest once, at the agent's start: signals that whoever started the agent
  ignores (SIGHUP under nohup), its signal mask, and descriptors that it left open;
- the limit of open descriptors is the one that the agent was started with (`_limits`), and oom_score_adj a login's
  (`_oom`). Other resource limits and umask are the agent's own, and its unit must leave the limits as a login has
  them.

Pipes, never socketpairs: `echo x >/dev/stdout` opens the descriptor anew, which a socket refuses. Linux 5.3 or newer,
for pidfd_open.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from pyinfra_agent._execute import execute
from pyinfra_agent._limits import reserved_descriptors, start_limited
from pyinfra_agent._oom import with_score_of_a_login
from pyinfra_agent._pty import PtySize, in_terminal, open_terminal, terminal_environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyinfra_agent._cgroup import Cgroup

__all__ = ["Child", "Command", "SpawnFailed", "Stdin", "inherit_nothing_of_the_agent", "start_child"]

# `head -c 200M /dev/zero` through one task: 0.5 GB/s with the default 64 KiB, 1.2 with this, 1.6 with 512 KiB; a
# stalled reader pins all of it in kernel memory, and an ordinary user gets 64 MiB for all pipes together.
_OUTPUT_PIPE_BYTES: Final = 256 * 1024
_LONGEST_ARGUMENT_BYTES: Final = 128 * 1024  # MAX_ARG_STRLEN, with its terminating NUL
_SHOWN_CHARACTERS: Final = 200
_STDERR: Final = 2


class Stdin(enum.Enum):
    """What a command reads from."""

    NONE = enum.auto()
    """/dev/null; with a terminal, the terminal that nobody types at."""
    PIPE = enum.auto()
    """What `Process.write_stdin` sends."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. `env` is all of the environment, and its PATH is where a bare program name is looked up.

    `stdin` may be a descriptor, which stays the caller's to close; `descriptors` stay open under their own numbers
    in the command, for a script that travels as /dev/fd/N. With `pty` the command's output is all on stdout. `nice`
    is the niceness that it runs with; None is the agent's own. `terminal_owner` is the user that the terminal is given
    to. `prefix` is a program, with arguments, that executes the rest in its own place.
    """

    argv: Sequence[bytes]
    env: Mapping[bytes, bytes]
    cwd: bytes | None = None
    stdin: Stdin | int = Stdin.NONE
    pty: PtySize | None = None
    descriptors: Sequence[int] = ()
    nice: int | None = None
    terminal_owner: int | None = None
    prefix: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Child:
    """The kernel's side of a started command; all descriptors are the caller's, ours are non-blocking.

    With a terminal `stdin` and `stdout` are one and the same descriptor, its master. What is over is None; none is so
    soon, but a command may come from an agent before this one.

    `held` are the ends that the command writes to, kept open by us: as long as they are, its outputs are not at their
    end. Whoever sees the command exit closes them; those of a terminal not before: a command that has closed all of its
    streams and is about to exit, as `cat` is, would seem to be done with the terminal, and be hung up when we are, too.
    """

    pid: int
    pidfd: int | None
    stdin: int | None
    stdout: int | None
    stderr: int | None
    has_terminal: bool
    held: tuple[int, ...] = ()


class SpawnFailed(Exception):
    """A command could not be started, and nothing of it ran.

    Attributes:
        what: "program", "directory", "arguments", "terminal" or "resources": what to look at.
        errno: the operating system's number for the reason.
        text: one line for a person, naming the path.
    """

    def __init__(self, what: str, number: int, text: str) -> None:
        super().__init__(text)
        self.what = what
        self.errno = number
        self.text = text


def inherit_nothing_of_the_agent() -> None:
    """Give this process the signal mask and dispositions of a login, as every command inherits them. Call it first.

    Descriptors that whoever started the agent left open are closed when a command is executed.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > _STDERR:
            with contextlib.suppress(OSError):  # that of the list itself
                os.set_inheritable(int(name), False)


def start_child(command: Command, cgroup: Cgroup | None = None) -> Child:
    """Start `command`, in `cgroup`, and return as soon as it has been executed; blocks for about a millisecond.

    Raises:
        SpawnFailed: the command did not start.
    """
    if not command.argv or not command.argv[0]:
        raise SpawnFailed("arguments", errno.EINVAL, "cannot run an empty command: name a program")
    opened: list[int] = []  # and not handed over
    try:
        if command.pty is not None:
            return _start_in_terminal(command, cgroup, command.pty, opened)
        if command.prefix:
            _check_program(command)  # the prefix could only tell by an exit code
        return _start_with_pipes(command, cgroup, opened)
    except ValueError as error:
        raise SpawnFailed("arguments", errno.EINVAL, f"cannot run {_shown(command.argv[0])}: {error}") from error
    except OSError as error:
        text = f"cannot run {_shown(command.argv[0])}: {os.strerror(error.errno or 0).lower()}"
        raise SpawnFailed("resources", error.errno or 0, text) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _start_with_pipes(command: Command, cgroup: Cgroup | None, opened: list[int]) -> Child:
    stdout, childs_stdout = _pipe(opened)
    stderr, childs_stderr = _pipe(opened)
    stdin: int | None = None
    if command.stdin is Stdin.PIPE:
        childs_stdin, stdin = _pipe(opened)
    elif command.stdin is Stdin.NONE:
        childs_stdin = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        opened.append(childs_stdin)
    else:
        childs_stdin = command.stdin
    pid = _execute(command, cgroup, command.argv, command.env, (childs_stdin, childs_stdout, childs_stderr))
    pidfd = _taken_up(pid, command)
    opened.clear()
    if not isinstance(command.stdin, int):
        os.close(childs_stdin)
    if stdin is not None:
        os.set_blocking(stdin, False)
    for descriptor in (stdout, stderr):
        os.set_blocking(descriptor, False)
    with contextlib.suppress(OSError):  # an ordinary user may have used up the pages that it gets for pipes
        fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, _OUTPUT_PIPE_BYTES)
    return Child(pid, pidfd, stdin, stdout, stderr, has_terminal=False, held=(childs_stdout, childs_stderr))


def _start_in_terminal(command: Command, cgroup: Cgroup | None, size: PtySize, opened: list[int]) -> Child:
    _check_program(command)  # the wrapper could only tell by an exit code
    try:
        master, slave = open_terminal(size)
    except OSError as error:
        text = f"cannot open a terminal: {os.strerror(error.errno or 0).lower()}"
        raise SpawnFailed("terminal", error.errno or 0, text) from error
    opened += (master, slave)
    if command.terminal_owner is not None:
        os.fchown(slave, command.terminal_owner, -1)  # as login(1) does: `$(tty)` is the user's to open
    childs_stdin = command.stdin if isinstance(command.stdin, int) else slave
    argv, env = in_terminal(command.argv, slave), terminal_environment(command.env, size)
    pid = _execute(command, cgroup, argv, env, (childs_stdin, slave, slave))
    pidfd = _taken_up(pid, command)
    opened.clear()
    os.set_blocking(master, False)
    stdin = master if command.stdin is Stdin.PIPE else None
    return Child(pid, pidfd, stdin, master, None, has_terminal=True, held=(slave,))


def _pipe(opened: list[int]) -> tuple[int, int]:
    ends = os.pipe2(os.O_CLOEXEC)
    opened += ends
    return ends


def _execute(
    command: Command,
    cgroup: Cgroup | None,
    argv: Sequence[bytes],
    env: Mapping[bytes, bytes],
    streams: tuple[int, int, int],
) -> int:
    def start() -> int:
        return execute([*command.prefix, *argv], env, command.cwd, streams, command.descriptors)

    try:
        with with_score_of_a_login(), cgroup.entered() if cgroup is not None else contextlib.nullcontext():
            return start_limited(start, max(streams))
    except OSError as error:
        _explain(error, command)


def _taken_up(pid: int, command: Command) -> int:
    """Return a descriptor for the child, which was executed a moment ago."""
    try:
        with reserved_descriptors():
            pidfd = os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    if command.nice is not None:
        with contextlib.suppress(OSError):  # it is over, or not ours any more
            os.setpriority(os.PRIO_PROCESS, pid, command.nice)
    return pidfd


def _explain(error: OSError, command: Command) -> NoReturn:
    number = error.errno or 0
    program, cwd = command.argv[0], command.cwd
    reason = os.strerror(number).lower()
    if cwd is not None and error.filename == cwd and (cwd != program or not os.path.isdir(cwd)):
        if number == errno.ENOENT:
            reason = "no such directory"
        raise SpawnFailed("directory", number, f"cannot start in {_shown(cwd)}: {reason}") from error
    if number == errno.E2BIG:
        longest = max(map(len, command.argv))
        if longest >= _LONGEST_ARGUMENT_BYTES:
            reason = f"one argument has {longest} bytes and Linux takes {_LONGEST_ARGUMENT_BYTES - 1}"
        else:
            reason = "its arguments and environment are longer than the system allows"
        raise SpawnFailed("arguments", number, f"cannot run {_shown(program)}: {reason}") from error
    if number in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        raise SpawnFailed("resources", number, f"cannot run {_shown(program)}: {reason}") from error
    raise SpawnFailed("program", number, f"cannot run {_shown(program)}: {_why_not(number, command)}") from error


def _why_not(number: int, command: Command) -> str:
    program = command.argv[0]
    if number == errno.ENOENT:
        if b"/" not in program:
            return f"not found in PATH ({_shown(_search_path(command))})"
        if os.path.exists(os.path.join(command.cwd or b"", program)):
            return "the interpreter that it names does not exist"
        return "no such file"
    if number == errno.EACCES:
        path = os.path.join(command.cwd or b"", program)
        return "it is a directory" if os.path.isdir(path) else "no permission to execute it"
    if number == errno.ENOEXEC:
        return "neither a program for this machine nor a script that starts with #!"
    return os.strerror(number).lower()


def _check_program(command: Command) -> None:
    program, cwd = command.argv[0], command.cwd or b""
    if command.cwd is not None and not os.path.isdir(cwd):
        return  # Popen says so, precisely
    places = [b""] if b"/" in program else _search_path(command).split(b":")
    paths = [os.path.join(cwd, place, program) for place in places]
    present = [path for path in paths if os.path.exists(path)]
    if not any(os.access(path, os.X_OK) and not os.path.isdir(path) for path in present):
        number = errno.EACCES if present else errno.ENOENT
        raise SpawnFailed("program", number, f"cannot run {_shown(program)}: {_why_not(number, command)}")


def _search_path(command: Command) -> bytes:
    return command.env.get(b"PATH", os.fsencode(os.defpath))


def _shown(path: bytes) -> str:
    text = path.decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
