"""What stands on a target of the agent that `enrolment` brings there, and the shell scripts that look, add and remove.

    /opt/pyinfra-agent             a virtual environment of its own
    /opt/pyinfra-agent/installed   the version in it, written when pip was done
    /opt/pyinfra-agent/enrolled    what was asked for, written when all of it was done

The rest is where `pyinfra-agent install` puts it. Scripts are for a POSIX shell and need nothing but coreutils, so
that they can say what is missing on a machine that has no Python yet.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pyinfra.api import FactBase

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "DISTRIBUTION",
    "MIN_PYTHON",
    "AgentInstallation",
    "Installation",
    "certificate_script",
    "command_line",
    "install_script",
    "note_script",
    "remove_script",
    "upload_path",
]

DISTRIBUTION: Final = "pyinfra-agentd"
MIN_PYTHON: Final = (3, 10)

_DIRECTORY: Final = "/opt/pyinfra-agent"
_COMMAND: Final = f"{_DIRECTORY}/bin/pyinfra-agent"
_INSTALLED: Final = f"{_DIRECTORY}/installed"
_NOTE: Final = f"{_DIRECTORY}/enrolled"
_STATE: Final = "/var/lib/pyinfra-agent"
_UNIT: Final = "/etc/systemd/system/pyinfra-agent.service"

# Each line is NAME=VALUE. It looks and does nothing: `pyinfra-agent key` would make a key where there is none.
_LOOK: Final = """\
echo "uid=$(id -u)"
version=$({python} -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) && echo "python=$version"
{python} -c 'import venv' 2>/dev/null && echo has=venv
{python} -c 'import ensurepip' 2>/dev/null && echo has=ensurepip
[ -d /run/systemd/system ] && echo has=systemd
[ -e {unit} ] && echo has=unit
if [ -e {directory}/pyvenv.cfg ]; then echo has=environment; elif [ -e {directory} ]; then echo has=stranger; fi
systemctl is-active --quiet pyinfra-agent && systemctl is-enabled --quiet pyinfra-agent && echo has=service
state={state}
if {command} --version >/dev/null 2>&1; then
    said=$({command} check-config 2>/dev/null | sed -n 's/^state_dir = "\\(.*\\)"$/\\1/p')
    state=${{said:-$state}}
    [ -e "$state/key" ] && {command} key 2>/dev/null | sed 's/^/key=/'
    sed 's/^/version=/' {installed} 2>/dev/null
    sed 's/^/note=/' {note} 2>/dev/null
fi
echo "state=$state"
[ -e "$state/key" ] && echo has=key
sed 's/^/authorized=/' "$state/authorized_controllers" 2>/dev/null
sed 's/^/certificate=/' "$state/certificate" 2>/dev/null
[ -e {state} ] && echo has=state
true"""

# An environment that was not finished is made anew. pip's own wheel runs where it is: Debian's Python comes without
# ensurepip.
_INSTALL: Final = """\
set -eu
umask 022
export PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
python={directory}/bin/python
packed={packed}
wheels= options=
if [ -n "$packed" ]; then
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels" "$packed"' EXIT
    # On its way here it may have lain where others can write.
    echo "{sha256}  $packed" | sha256sum -c >/dev/null
    {python} -m tarfile -e "$packed" "$wheels"
    options="--no-index --find-links $wheels"
fi
pip=$(find "${{wheels:-/dev/null}}" -name 'pip-*.whl' | tail -n 1)
if [ -n "$pip" ]; then
    pip=$pip/pip
    [ -e {installed} ] || {python} -m venv --clear --without-pip {directory}
else
    pip='-m pip'
    [ -e {installed} ] && "$python" $pip --version >/dev/null 2>&1 || {python} -m venv --clear {directory}
fi
rm -f {note} {installed}
"$python" $pip install --quiet $options {requirement}
echo {version} > {installed}"""

_REMOVE: Final = """\
set -eu
if {command} --version >/dev/null 2>&1; then
    {command} uninstall --purge
elif [ -e {unit} ]; then
    systemctl disable --quiet --now pyinfra-agent.service
    rm -f {unit}
    systemctl daemon-reload
fi
rm -rf {state} /etc/pyinfra-agent
if [ -e {directory}/pyvenv.cfg ]; then rm -rf {directory}; fi"""


@dataclass(frozen=True, slots=True)
class Installation:
    """What there is on a target.

    Attributes:
        uid: of whoever looks; None if the look itself failed.
        python: version of the Python that would be used; None if there is none.
        has: some of `venv`, `ensurepip` (of that Python), `systemd`, `unit`, `environment`, `stranger` (something else
            in its place), `service` (it is enabled and runs), `key` and `state` (its files).
        key_line: the agent's, if it has a key and what is installed can read it.
        authorized: the lines of its authorized_controllers.
        certificate: what its certificate file says; "" if it has none.
        state_dir: where it keeps these.
        version: of the agent that is installed.
        note: what was asked for, if that was done to its end.
    """

    uid: int | None = None
    python: tuple[int, ...] | None = None
    has: frozenset[str] = frozenset()
    key_line: str | None = None
    authorized: tuple[str, ...] = ()
    certificate: str = ""
    state_dir: str = _STATE
    version: str | None = None
    note: str | None = None

    @property
    def is_absent(self) -> bool:
        """True if nothing of an agent is there."""
        return not self.has & {"unit", "environment", "state"}

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Installation:
        """Return what the script has said."""
        said: dict[str, list[str]] = {}
        for line in lines:
            name, separator, value = line.partition("=")
            if separator:
                said.setdefault(name, []).append(value)

        def last(name: str) -> str | None:
            return said[name][-1] if name in said else None

        uid, python = last("uid"), last("python")
        return cls(
            uid=int(uid) if uid is not None and uid.isdigit() else None,
            python=_numbers(python) if python is not None else None,
            has=frozenset(said.get("has", ())),
            key_line=last("key"),
            authorized=tuple(said.get("authorized", ())),
            certificate="\n".join(said.get("certificate", ())),
            state_dir=last("state") or _STATE,
            version=last("version"),
            note=last("note"),
        )


class AgentInstallation(FactBase[Installation]):
    """Return what there is of an agent on the host, as an `Installation`."""

    @staticmethod
    def default() -> Installation:
        """Return what stands for a look that failed."""
        return Installation()

    def command(self, python: str = "python3") -> str:
        """Return the script that looks."""
        return _LOOK.format(
            python=shlex.quote(python),
            directory=_DIRECTORY,
            command=_COMMAND,
            installed=_INSTALLED,
            note=_NOTE,
            state=_STATE,
            unit=_UNIT,
        )

    def process(self, output: Iterable[str]) -> Installation:
        """Return what the script has said."""
        return Installation.parse(output)


def upload_path() -> str:
    """Return where the packed wheels are to be uploaded; nobody but root can put anything in its way there."""
    return f"{_DIRECTORY}-wheels.tar"


def install_script(python: str, version: str, *, wheels_sha256: str | None) -> str:
    """Return what brings *version* into the virtual environment, which is made if it is not there or is broken.

    Args:
        python: the target's.
        version: of the agent.
        wheels_sha256: of what was uploaded, in hexadecimal digits; None for an index.
    """
    return _INSTALL.format(
        python=shlex.quote(python),
        directory=_DIRECTORY,
        installed=_INSTALLED,
        note=_NOTE,
        version=shlex.quote(version),
        packed=upload_path() if wheels_sha256 is not None else "",
        sha256=wheels_sha256,
        requirement=shlex.quote(f"{DISTRIBUTION}[agent]=={version}"),
    )


def certificate_script(state_dir: str, line: str) -> str:
    """Return what gives the agent a certificate: it reads the file when it changes."""
    path = shlex.quote(f"{state_dir}/certificate")
    return f"umask 022 && printf '%s\\n' {shlex.quote(line)} > {path}.new && mv {path}.new {path}"


def note_script(note: str) -> str:
    """Return what notes that all was done."""
    return f"printf '%s\\n' {shlex.quote(note)} > {_NOTE}"


def remove_script() -> str:
    """Return what leaves nothing of an agent."""
    return _REMOVE.format(directory=_DIRECTORY, command=_COMMAND, state=_STATE, unit=_UNIT)


def command_line(words: Sequence[str]) -> str:
    """Return the installed `pyinfra-agent` with these arguments, for a shell."""
    return shlex.join([_COMMAND, *words])


def _numbers(version: str) -> tuple[int, ...] | None:
    parts = version.split(".")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else None
