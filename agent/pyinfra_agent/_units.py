"""The service's files for this machine: systemd's unit and drop-ins from their templates, or a script for OpenRC.

The templates are complete units, `systemd/` in the repository; here they get the interpreter that runs this.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["NAME", "command_line", "openrc_script", "unit_files"]

NAME: Final = "pyinfra-agent"
_TEMPLATE_COMMAND: Final = "/usr/bin/python3 -m pyinfra_agent"
_SINCE: Final = re.compile(r"^# since (\d+)\n(.*\n)", re.MULTILINE)


def command_line(listen: Sequence[str] = ()) -> list[str]:
    """Return the command that runs the agent in the foreground, by this interpreter."""
    return [*_command(), "serve", *(word for address in listen for word in ("--listen", address))]


def unit_files(
    version: int, *, user: str | None = None, listen: Sequence[str] = (), with_socket: bool = False
) -> Mapping[str, str]:
    """Return the files for /etc/systemd/system, by name, for systemd of this *version*."""
    serve = "" if with_socket else "".join(f" --listen {_quoted(address)}" for address in listen)
    command = " ".join(map(_quoted, _command()))
    service = _template(f"{NAME}.service").replace(_TEMPLATE_COMMAND, command)
    service = service.replace(f"ExecStart={command} serve\n", f"ExecStart={command} serve{serve}\n")
    files = {f"{NAME}.service": _fitting(service, version)}
    if user is not None:
        text = _template("unprivileged.conf")
        files[f"{NAME}.service.d/unprivileged.conf"] = text.replace("User=pyinfra\n", f"User={user}\n")
    if with_socket:
        text = _template(f"{NAME}.socket")
        if listen:
            # A leading colon means every address to us, and nothing to systemd.
            lines = "".join(f"ListenStream={address.removeprefix(':')}\n" for address in listen)
            text = text.replace("ListenStream=7963\n", lines)
        files[f"{NAME}.socket"] = _fitting(text, version)
    return files


def openrc_script(user: str | None, listen: Sequence[str]) -> str:
    """Return the file /etc/init.d/pyinfra-agent for OpenRC (openrc-run(8))."""
    command, *arguments = command_line(listen)
    lines = [
        "#!/sbin/openrc-run",
        'description="pyinfra agent"',
        "supervisor=supervise-daemon",
        f"command={shlex.quote(command)}",
        f"command_args={shlex.quote(shlex.join(arguments))}",
        *([f"command_user={shlex.quote(user)}"] if user else []),
        "respawn_delay=1",
        "respawn_max=0",
        "extra_started_commands=reload",
        "",
        "depend() {",
        "    use net logger",
        "}",
        "",
        "reload() {",
        '    supervise-daemon "$RC_SVCNAME" --signal HUP',
        "}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _command() -> list[str]:
    # -I: nothing of root's environment, working directory or home is imported from.
    return [sys.executable, "-I", "-m", "pyinfra_agent"]


def _template(name: str) -> str:
    """Return a template: installed beside this module, and in a checkout where the repository has it."""
    beside = Path(__file__).parent / "systemd" / name
    return (beside if beside.exists() else Path(__file__).parents[2] / "systemd" / name).read_text()


def _fitting(text: str, version: int) -> str:
    """Leave out what this systemd is too old for; it would warn about it at every reload."""
    return _SINCE.sub(lambda match: match[0] if version >= int(match[1]) else "", text)


def _quoted(word: str) -> str:
    """Return *word* as systemd takes it apart (systemd.service(5), COMMAND LINES; specifiers and variables)."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[\w./:@%$+,=\[\]-]+", escaped) else f'"{escaped}"'
