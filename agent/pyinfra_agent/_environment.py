"""The environment of a login, built from nothing.

A command gets what a user finds after logging in, and nothing of the unit that the agent runs in (NOTIFY_SOCKET,
LISTEN_FDS, INVOCATION_ID and so on). The system's own files are looked at each time, and read when they have changed,
so that a change counts for the next command. Shell start-up files are not read.
"""

from __future__ import annotations

import os
import pwd
import re
from functools import lru_cache
from pathlib import Path
from typing import Final

__all__ = ["login_environment"]

_FILE_LIMIT_BYTES: Final = 64 * 1024
_ROOT_PATH: Final = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_USER_PATH: Final = b"/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
_ASSIGNMENT: Final = re.compile(rb"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_FILES: Final = ("etc/passwd", "etc/login.defs", "etc/environment", "etc/default/locale", "etc/locale.conf")
_LOCALE_NAME: Final = re.compile(rb"LANG|LANGUAGE|LC_[A-Z]+")


def login_environment(uid: int | None = None, *, root: Path = Path("/")) -> dict[bytes, bytes]:
    """Return the variables that a login of user `uid` starts with.

    HOME, USER, LOGNAME and SHELL come from the user database and no file overrides them. PATH comes from
    /etc/environment, else from /etc/login.defs (ENV_SUPATH for root, ENV_PATH for others), else it is the usual one.
    Then the rest of /etc/environment, the locale, and the user's runtime directory and message bus where they exist.
    Missing, unreadable and malformed files count as empty, malformed lines as absent.

    Args:
        uid: the user; None is the one this process runs as. A number without an account is a legal user.
        root: where the files are looked for, and the home directory; for tests.
    """
    uid = os.geteuid() if uid is None else uid
    base = str(root).rstrip("/")
    environment = dict(_from_files(uid, base, tuple(_signature(f"{base}/{name}") for name in _FILES)))
    if not os.path.isdir(base + os.fsdecode(environment[b"HOME"])):
        environment[b"HOME"] = b"/"  # as login(1): a command must be able to start in its home
    environment.update(_user_session(uid, base))
    return environment


def _signature(path: str) -> tuple[int, int, int]:
    """Return what changes when the file does; zeros for one that is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_size, status.st_mtime_ns


# The signatures are an argument so that a changed file is another call. Without the cache this would take a quarter of
# what starting a command does. A user database that is not /etc/passwd is asked again when any of the files changes.
@lru_cache(maxsize=8)
def _from_files(uid: int, base: str, signatures: tuple[tuple[int, int, int], ...]) -> dict[bytes, bytes]:
    etc = Path(f"{base}/etc")
    environment = {b"PATH": _default_path(etc / "login.defs", uid)}
    for path in (etc / "locale.conf", etc / "default/locale"):
        locale = _assignments(path)
        environment.update((name, value) for name, value in locale.items() if _LOCALE_NAME.fullmatch(name))
    environment.update(_assignments(etc / "environment"))
    environment.update(_identity(uid))
    return environment


def _identity(uid: int) -> dict[bytes, bytes]:
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        name, home, shell = str(uid), "/", "/bin/sh"
    else:
        name, home, shell = account.pw_name, account.pw_dir or "/", account.pw_shell or "/bin/sh"
    user = os.fsencode(name)
    return {b"HOME": os.fsencode(home), b"USER": user, b"LOGNAME": user, b"SHELL": os.fsencode(shell)}


def _user_session(uid: int, base: str) -> dict[bytes, bytes]:
    runtime = f"/run/user/{uid}"
    try:
        if os.stat(base + runtime).st_uid != uid:
            return {}  # somebody else's sockets are not for this user
    except OSError:
        return {}
    session = {b"XDG_RUNTIME_DIR": os.fsencode(runtime)}
    if Path(f"{base}{runtime}/bus").is_socket():
        session[b"DBUS_SESSION_BUS_ADDRESS"] = os.fsencode(f"unix:path={runtime}/bus")
    return session


def _default_path(path: Path, uid: int) -> bytes:
    wanted = b"ENV_SUPATH" if uid == 0 else b"ENV_PATH"
    for line in _lines(path):
        name, _, value = line.strip().partition(b" ") if b"\t" not in line else line.strip().partition(b"\t")
        if name.strip() == wanted:
            found = value.strip().strip(b"\"'").removeprefix(b"PATH=")
            if found:
                return found
    return _ROOT_PATH if uid == 0 else _USER_PATH


def _assignments(path: Path) -> dict[bytes, bytes]:
    found = {}
    for line in _lines(path):
        match = _ASSIGNMENT.fullmatch(line)
        if match is not None:
            value = _unquoted(match[2].strip())
            if value is not None:
                found[match[1]] = value
    return found


def _unquoted(value: bytes) -> bytes | None:
    """The value without its quotes and its comment; None where a quote is left open."""
    quote = value[:1]
    if quote in (b'"', b"'"):
        end = value.find(quote, 1)
        return None if end < 0 else value[1:end]
    return re.split(rb"\s#", value, maxsplit=1)[0].rstrip()


def _lines(path: Path) -> list[bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        content = os.read(descriptor, _FILE_LIMIT_BYTES)
    except OSError:
        return []
    finally:
        os.close(descriptor)
    lines = content.split(b"\n")
    if len(content) == _FILE_LIMIT_BYTES:
        lines.pop()  # it may be cut short
    return [line for line in lines if b"\0" not in line and not line.lstrip().startswith(b"#")]
