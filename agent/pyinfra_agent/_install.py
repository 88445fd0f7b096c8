"""`pyinfra-agent install` and `uninstall`: the agent as a service of this machine, and nothing left of it."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import format_public, parse_secret

from ._config import ConfigError, load_config, parse_address
from ._keys import StateError
from ._units import NAME, command_line, openrc_script, unit_files

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = ["install", "uninstall"]

_RUNNING_SYSTEMD: Final = Path("/run/systemd/system")
_OPENRC: Final = Path("/sbin/openrc-run")
_UNITS: Final = Path("/etc/systemd/system")
_SERVICE: Final = f"{NAME}.service"
_SOCKET: Final = f"{NAME}.socket"
_STATE: Final = Path("/var/lib", NAME)
_CONFIGURATION: Final = Path("/etc", NAME)
_SYSTEMCTL_SECONDS: Final = 120


def install(*, user: str | None, listen: Sequence[str], with_socket: bool) -> int:
    """Write the unit, enable and start it, and print the key to trust; returns the exit status.

    Repeated, it brings unit and process up to date: the process is restarted, and hands over what it has.

    Raises:
        StateError: it cannot be done, or the service does not start.
    """
    for address in listen:
        try:
            parse_address(address)
        except ValueError as error:
            raise StateError(f"--listen {error}") from None
    if user is not None:
        try:
            pwd.getpwnam(user)
        except KeyError:
            raise StateError(f"there is no user {user!r}: useradd --create-home {shlex.quote(user)}") from None
    if not _RUNNING_SYSTEMD.is_dir():
        return _explain(user, listen)
    _need_root("install")
    try:
        state_dir = load_config().state_dir or _STATE
    except ConfigError as error:
        raise StateError(f"the configuration cannot be used: {error.lines[0]}") from error
    _compile()
    files = unit_files(_systemd_version(), user=user, listen=listen, with_socket=with_socket)
    _remove_units(keep=files)
    for name, text in files.items():
        _write(_UNITS / name, text)
    _systemctl("daemon-reload")
    if with_socket:
        if not _is_active(_SOCKET):
            _systemctl("stop", _SERVICE)  # systemd does not open a socket under a running service
        _systemctl("enable", "--quiet", "--now", _SOCKET)
    _systemctl("enable", "--quiet", _SERVICE)
    _systemctl("restart", _SERVICE)
    print(f"{_UNITS / _SERVICE} is enabled and runs. Its key, for known_agents or agent_public_key:")
    print(_key_line(state_dir))
    print("Nobody is let in before you say so. To let a controller in:")
    authorize = [*command_line()[:-1], "authorize", "--state-dir", str(state_dir)]
    print(f"  {shlex.join([*(['runuser', '-u', user, '--'] if user else []), *authorize])} 'KEY LINE'")
    return 0


def uninstall(*, purge: bool) -> int:
    """Stop the service and remove it; with *purge* its keys and its configuration, too. Returns the exit status.

    Raises:
        StateError: it cannot be done.
    """
    _need_root("uninstall")
    if _RUNNING_SYSTEMD.is_dir():
        present = [name for name in (_SOCKET, _SERVICE) if (_UNITS / name).exists()]
        if present:
            _systemctl("disable", "--quiet", "--now", *present)
        _remove_units()
        _systemctl("daemon-reload")
        with suppress(StateError):  # only what failed can be reset
            _systemctl("reset-failed", *(_SERVICE, _SOCKET))
    kept = []
    for directory in (_STATE, _CONFIGURATION):
        if purge:
            _remove_tree(directory)
        else:
            with suppress(OSError):
                directory.rmdir()
        if directory.exists():
            kept.append(str(directory))
    print("The service is removed; commands that it started and that still run were left alone.")
    if kept:
        print(f"Kept: {' and '.join(kept)}, with its keys and settings (--purge removes them)")
    return 0


def _explain(user: str | None, listen: Sequence[str]) -> int:
    """Print what to do where there is no systemd."""
    said = f"{NAME}: no systemd is running here, so nothing was installed"
    if _OPENRC.exists():
        print(f"{said}: this is the script for OpenRC, for /etc/init.d/{NAME}", file=sys.stderr)
        print(openrc_script(user, listen), end="")
    else:
        print(f"{said}: this runs the agent in the foreground, for the service manager that you have", file=sys.stderr)
        print(shlex.join([*(["runuser", "-u", user, "--"] if user else []), *command_line(listen)]))
    return 1


def _compile() -> None:
    """Have compiled what the service imports, by who may write it: pip does so at once, other installers do not.

    A service that may not write there would do it at every start, which takes four times as long.
    """
    from . import _serve  # noqa: F401

    with suppress(ImportError):
        import zeroconf  # noqa: F401


def _need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise StateError(f"{what} changes the system's services: run it as root")


def _systemd_version() -> int:
    found = re.match(r"systemd (\d+)", _run("systemctl", "--version"))
    return int(found[1]) if found else 0


def _is_active(unit: str) -> bool:
    return subprocess.run(["systemctl", "is-active", "--quiet", unit], check=False).returncode == 0


def _systemctl(*words: str) -> None:
    _run("systemctl", *words)


def _run(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_SYSTEMCTL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StateError(f"{shlex.join(words)} failed: {error}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        why = said[0] if said else f"exit status {done.returncode}"
        raise StateError(f"{shlex.join(words)} failed: {why} (journalctl -u {NAME} says more)")
    return done.stdout


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.chmod(0o644)
    fresh.replace(path)


def _remove_units(keep: Collection[str] = ()) -> None:
    """Remove the files that an earlier `install` wrote, except those named in *keep*; other drop-ins are the user's."""
    for name in (_SERVICE, _SOCKET, f"{_SERVICE}.d/unprivileged.conf"):
        if name not in keep:
            if name == _SOCKET and (_UNITS / name).exists():
                _systemctl("disable", "--quiet", "--now", name)
            (_UNITS / name).unlink(missing_ok=True)
    with suppress(OSError):
        (_UNITS / f"{_SERVICE}.d").rmdir()


def _remove_tree(directory: Path) -> None:
    if directory.is_symlink():
        directory.unlink()
    elif directory.exists():
        shutil.rmtree(directory)


def _key_line(state_dir: Path) -> str:
    # Not by `load_or_create_key`: the file may be that of another user, whose agent has just made it.
    try:
        return format_public(parse_secret((state_dir / "key").read_text()).public)
    except (OSError, ValueError, KeyFormatError) as error:
        raise StateError(f"the service runs, but its key {state_dir / 'key'} cannot be read: {error}") from error
