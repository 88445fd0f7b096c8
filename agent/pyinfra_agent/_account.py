"""Commands as another user than the agent's: an argv prefix, so that this process never acts for such a controller.

    setpriv --reuid NAME --regid GID --init-groups --inh-caps=-all --ambient-caps=-all --
    env --chdir=DIRECTORY --
    [sh -c '. "$0"; ...' FILE]
    ARGV...

What stands before `env` runs as root, so its environment is the system's own: with a controller's LD_PRELOAD that
controller would be root. Variables of a request come behind it, by a nameless file that a shell reads: words of argv
would be seen by everybody.

setpriv (util-linux) gives up uid, gid, supplementary groups and capabilities; env (coreutils) changes the directory
after that, as a user who may or may not enter it. The bounding set stays and NoNewPrivs is not set, so that sudo works
as it does for that user. `subprocess`'s own `user=` would lose vfork: starting a command would take longer the more
memory the agent has.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol import RequestRefused

from ._environment import login_environment
from ._incoming import write_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ._spawn import Command

__all__ = ["Account", "find_account"]

_SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROBE_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class Account:
    """A user that commands run as; made by `find_account`."""

    name: str
    uid: int
    gid: int

    def environment(self) -> dict[bytes, bytes]:
        """Return what a login of this user starts with."""
        return login_environment(self.uid)

    @contextmanager
    def taking(self, command: Command) -> Iterator[Command]:
        """Give *command* as this user's, to be started within the block.

        Raises:
            RequestRefused: it cannot be run as another user.
        """
        program = command.argv[0]
        if not program or b"=" in program:
            raise RequestRefused("spawn", "cannot run a program without a name, or with = in it, as another user")
        argv = [*self._prefix(), b"--chdir=" + (command.cwd or b"/"), b"--"]
        base = self.environment()
        more = {name: value for name, value in command.env.items() if base.get(name) != value}
        taken = replace(command, cwd=b"/", env=base, terminal_owner=self.uid)
        if not more:
            yield replace(taken, argv=[*argv, *command.argv])
            return
        descriptor = _hold(_exports(more))
        try:
            yield replace(
                taken,
                argv=[*argv, *_READER, b"/proc/self/fd/%d" % descriptor, *command.argv],
                descriptors=[*command.descriptors, descriptor],
            )
        finally:
            os.close(descriptor)

    def _prefix(self) -> list[bytes]:
        setpriv, env = _tools()
        words = ["--reuid", str(self.uid), "--regid", str(self.gid), "--init-groups", *_NO_CAPABILITIES, "--", env]
        return [os.fsencode(word) for word in (setpriv, *words)]


#: Emptied once it was read: what the command leaves behind inherits the descriptor.
_READER: Final = (b"/bin/sh", b"-c", b'. "$0" && : >"$0" && exec "$@"')
_NAME: Final = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")


def _exports(variables: Mapping[bytes, bytes]) -> bytes:
    """Return what sets *variables* in a shell."""
    lines = []
    for name, value in variables.items():
        if not _NAME.fullmatch(name):
            raise RequestRefused("bad-request", "as another user only variables can be set whose names a shell takes")
        quoted = value.replace(b"'", b"'\\''")
        lines.append(b"export %s='%s'\n" % (name, quoted))
    return b"".join(lines)


def _hold(content: bytes) -> int:
    """Return a descriptor of a nameless file with *content*."""
    try:
        with ExitStack() as on_failure:
            descriptor = os.memfd_create("pyinfra-agent-environment", os.MFD_CLOEXEC)
            on_failure.callback(os.close, descriptor)
            write_all(descriptor, [content])
            on_failure.pop_all()
            return descriptor
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise RequestRefused("spawn", f"cannot hold the environment: {reason}") from error


_NO_CAPABILITIES: Final = ("--inh-caps=-all", "--ambient-caps=-all")


def find_account(name: str) -> Account | None:
    """Return the account that commands of a controller with `user=NAME` run as; None if the agent has it already.

    Raises:
        RequestRefused: there is no such account, or this agent cannot run anything as it.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise RequestRefused(
            "denied", f"this controller's commands run as the user {name}, whom this machine does not know"
        ) from None
    own = os.geteuid()
    if entry.pw_uid == own:
        return None
    if own != 0:
        raise RequestRefused("denied", f"this controller's commands run as {name}, which only an agent of root can do")
    return Account(name, entry.pw_uid, entry.pw_gid)


@lru_cache(maxsize=1)
def _tools() -> tuple[str, str]:
    """Return setpriv and env, which were tried out; a failure is not remembered.

    Busybox has programs of these names that know other options.
    """
    setpriv, env = (shutil.which(name, path=_SYSTEM_PATH) for name in ("setpriv", "env"))
    if setpriv is not None and env is not None:
        words = [setpriv, "--reuid", "0", "--regid", "0", "--init-groups", *_NO_CAPABILITIES]
        try:
            done = subprocess.run(
                [*words, "--", env, "--chdir=/", "--", "true"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env={"PATH": _SYSTEM_PATH},
                timeout=_PROBE_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            pass
        else:
            if done.returncode == 0:
                return setpriv, env
    raise RequestRefused(
        "denied",
        "running commands as another user needs setpriv of util-linux and env of coreutils 8.28 or later on the target:"
        " install them there",
    )
