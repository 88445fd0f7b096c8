"""Executing a program in a session of its own: by posix_spawn, and by Popen where posix_spawn is not enough.

Both use vfork, so the price does not grow with the agent's memory. But Popen does in Python, before the program runs,
what posix_spawn does in C: 0.05 ms a command on a fast machine, while whoever wants its result waits.
"""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["execute"]

#: Python ignores SIGPIPE and SIGXFSZ, and a program must not find them ignored. The others have a handler or the
#: default; all are named because glibc asks what each has that is not: 60 system calls, a fourteenth of posix_spawn.
_DEFAULT: Final = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_FIRST_FREE: Final = 3  # below are the standard streams

#: False where Python was built with a C library that knows no sessions in posix_spawn (glibc before 2.26).
_spawns_sessions = True


def execute(
    words: Sequence[bytes],
    env: Mapping[bytes, bytes],
    cwd: bytes | None,
    streams: tuple[int, int, int],
    descriptors: Sequence[int] = (),
) -> int:
    """Return the id of a new process that executes *words* and leads a session; the caller has to wait for it.

    Args:
        words: the program and its arguments.
        env: all of the environment; its PATH is where a bare program name is looked up.
        cwd: where it starts; None is where this process is.
        streams: what it has for stdin, stdout and stderr.
        descriptors: what stays open in it, under their own numbers; nothing else does.

    Raises:
        OSError: it was not executed; `filename` is *cwd* if that was why.
        ValueError: a word or variable that no program can be given.
    """
    global _spawns_sessions
    path = _find_program(words[0], env)
    is_able = path is not None and _spawns_sessions and min(streams) >= _FIRST_FREE
    here = _own_directory() if is_able else None
    if path is not None and here is not None:
        try:
            return _spawn(path, words, env, (here, cwd), streams, descriptors)
        except NotImplementedError:
            _spawns_sessions = False
        finally:
            os.close(here)
    stdin, stdout, stderr = streams
    child = subprocess.Popen(
        words,
        executable=path,
        env=env,
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        pass_fds=tuple(descriptors),
    )
    child.returncode = 0  # Popen's destructor must neither warn nor reap it
    return child.pid


def _spawn(
    path: bytes,
    words: Sequence[bytes],
    env: Mapping[bytes, bytes],
    directories: tuple[int, bytes | None],
    streams: tuple[int, int, int],
    descriptors: Sequence[int],
) -> int:
    # Everything else that this process has open is closed by exec (PEP 446).
    actions = [(os.POSIX_SPAWN_DUP2, descriptor, number) for number, descriptor in enumerate(streams)]
    here, cwd = directories
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    try:
        # POSIX has posix_spawn change the directory since 2024, and Python does not yet. So this process is there
        # meanwhile; none of its threads uses a relative name.
        if cwd is not None:
            os.chdir(cwd)
        return os.posix_spawn(path, tuple(words), env, file_actions=actions, setsid=True, setsigdef=_DEFAULT)
    finally:
        try:
            os.fchdir(here)
        except OSError:  # it was closed to us just now
            os.chdir("/")
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)


def _own_directory() -> int | None:
    """Return a descriptor of where this process is; None if it could not come back there."""
    try:
        return os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None


def _find_program(program: bytes, env: Mapping[bytes, bytes]) -> bytes | None:
    """Return the path that execvp(3) would find; None where Popen has to look, and to say what is wrong.

    Popen would try every directory of PATH by an execve that fails, after 40 us to make the list of them.
    """
    if b"/" in program:
        return program
    for directory in env.get(b"PATH", b"").split(b":"):
        if not directory.startswith(b"/"):
            break
        path = directory + b"/" + program
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    return None
