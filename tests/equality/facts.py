"""Which facts pyinfra has, what each is asked, and which of them cannot stay the same from one look to the next.

A reading is a fact with its arguments. Where the installed pyinfra is another release than the tables were written
for, a fact that they do not know is still read, without arguments.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from typing import TYPE_CHECKING, Any, Final

import pyinfra.facts
from pyinfra.api.facts import FactBase, ShortFactBase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PLACE: Final = "/srv/equality"
"""A directory of the container that `facts_setup.sh` fills; the facts look at what is there."""

_BASE: Final = re.compile(r"(Base|BaseFact|Mixin)$")

_CONTENT: Final = f"{PLACE}/a file with 'quotes' and spaces.txt"
_REPO: Final = f"{PLACE}/clone"
_PYTHONS: Final[list[dict[str, Any]]] = [{}, {"is_managed": False}]
_PATHS: Final[list[dict[str, Any]]] = [
    {"path": _CONTENT},
    {"path": PLACE},
    {"path": f"{PLACE}/link"},
    {"path": f"{PLACE}/socket"},
    {"path": "~/.profile"},
    {"path": f"{PLACE}/missing"},
]
_HASHES: Final[list[dict[str, Any]]] = [{"path": f"{PLACE}/plain"}, {"path": _CONTENT}, {"path": f"{PLACE}/missing"}]
_FIND: Final[list[dict[str, Any]]] = [
    {"path": PLACE},
    {"path": PLACE, "maxdepth": 1, "args": ["-newermt", "2001-01-01"]},
    {"path": PLACE, "fname": "*n*", "path_match": f"{PLACE}/*"},
]
_TABLES: Final[list[dict[str, Any]]] = [{}, {"table": "filter"}]
_SYSTEMD: Final[list[dict[str, Any]]] = [{}, {"services": ["dbus.service", "systemd-journald.service"]}]

ARGUMENTS: Final[dict[str, list[dict[str, Any]]]] = {
    "apt.AptKeys": [{}, {"directories": [f"{PLACE}/keyrings"]}],
    "apt.SimulateOperationWillChange": [{"command": "install dpkg"}, {"command": "remove no-such-package"}],
    "crontab.Crontab": [{}, {"user": "daemon"}, {"user": "nobody"}],
    "deb.DebPackage": [{"package": "dpkg"}, {"package": "no-such-package"}],
    "docker.DockerContainer": [{"object_id": "c0ffee"}],
    "docker.DockerContainerFsChanges": [{"container_id": "c0ffee"}],
    "docker.DockerContainerProcesses": [{"container_id": "c0ffee"}],
    "docker.DockerImage": [{"object_id": "abc"}],
    "docker.DockerImageHistory": [{"image_id": "abc"}],
    "docker.DockerNetwork": [{"object_id": "bee"}],
    "docker.DockerPlugin": [{"object_id": "f00d"}],
    "docker.DockerVolume": [{"object_id": "data"}],
    "files.Block": [{"path": f"{PLACE}/blocks"}, {"path": f"{PLACE}/plain"}, {"path": f"{PLACE}/missing"}],
    "files.Directory": _PATHS,
    "files.File": _PATHS,
    "files.FileContents": [{"path": _CONTENT}, {"path": f"{PLACE}/lines"}, {"path": f"{PLACE}/missing"}],
    "files.FindDirectories": _FIND,
    "files.FindFiles": [*_FIND, {"path": PLACE, "min_size": "1KB"}],
    "files.FindInFile": [
        {"path": _CONTENT, "pattern": "t's.*é"},
        {"path": f"{PLACE}/lines", "pattern": "^(a|b)[0-9]+$", "extended_regex": True},
        {"path": f"{PLACE}/plain", "pattern": "nowhere"},
    ],
    "files.FindLinks": _FIND,
    "files.Flags": [{"path": PLACE}],
    "files.Link": _PATHS,
    "files.Md5File": _HASHES,
    "files.Sha1File": _HASHES,
    "files.Sha256File": _HASHES,
    "files.Sha384File": _HASHES,
    "files.Socket": _PATHS,
    "flatpak.FlatpakPackage": [{"package": "org.signal.Signal"}],
    "freebsd.PkgPackage": [{"package": "nginx"}, {"package": "nginx", "jail": "web"}],
    "freebsd.ServiceScript": [{"srvname": "sshd"}, {"srvname": "sshd", "jail": "web"}],
    "freebsd.ServiceStatus": [{"srvname": "sshd"}],
    "freebsd.Sysrc": [{"parameter": "sshd_enable"}, {"parameter": "sshd_enable", "jail": "web"}],
    "git.GitBranch": [{"repo": _REPO}, {"repo": f"{PLACE}/missing"}],
    "git.GitConfig": [{}, {"repo": _REPO}, {"system": True}],
    "git.GitLocalCommit": [{"repo": _REPO}, {"repo": _REPO, "ref": "no-such-ref"}],
    "git.GitRemoteBranchCommit": [{"repo": _REPO}, {"repo": _REPO, "branch": "main"}],
    "git.GitTag": [{"repo": _REPO}],
    "git.GitTrackingBranch": [{"repo": _REPO}],
    "gpg.GpgKey": [{"src": f"{PLACE}/keyrings/one.asc"}],
    "gpg.GpgKeyrings": [{"directories": [f"{PLACE}/keyrings"]}],
    "gpg.GpgKeys": [{}, {"keyring": f"{PLACE}/keyrings/two.gpg"}],
    "gpg.GpgSecretKeys": [{}, {"keyring": f"{PLACE}/keyrings/two.gpg"}],
    "iptables.Ip6tablesRules": _TABLES,
    "iptables.IptablesChains": _TABLES,
    "iptables.IptablesRules": [*_TABLES, {"table": "no-such-table"}],
    "mysql.MysqlDatabases": [{}, {"mysql_user": "root", "mysql_password": "it's $ecret"}],
    "mysql.MysqlUserGrants": [{"user": "shop"}],
    "npm.NpmPackages": [{}, {"directory": PLACE}],
    "openrc.OpenrcEnabled": [{}, {"runlevel": "sysinit"}],
    "pacman.PacmanUnpackGroup": [{"package": "xorg"}],
    "postgres.PostgresRoles": [{}, {"psql_password": "it's $ecret", "psql_database": "shop"}],
    "rpm.RpmPackage": [{"package": "bash"}],
    "rpm.RpmPackageProvides": [{"package": "vim"}],
    "runit.RunitManaged": [{}, {"service": "sshd"}, {"svdir": f"{PLACE}/missing"}],
    "runit.RunitStatus": [{}, {"service": "sshd"}],
    "selinux.FileContext": [{"path": PLACE}],
    "selinux.FileContextMapping": [{"target": "/etc", "_shell_executable": "bash"}],
    "selinux.SEBoolean": [{"boolean": "httpd_can_network_connect"}],
    "selinux.SEPort": [{"protocol": "tcp", "port": 22}],
    "server.AuthorizedKeys": [{"user": "root"}, {"user": "root", "path": f"{PLACE}/authorized_keys"}],
    "server.Command": [
        {"command": "env | sort; pwd; umask; id; ulimit -a; tty; trap"},
        {"command": "cat /proc/self/stat | cut -d' ' -f 7; grep -E '^Sig(Blk|Cgt)' /proc/self/status"},
        {"command": "env | sort", "_env": {"NAME": 'it\'s a "value"'}, "_chdir": "/usr"},
        {"command": "printf 'one\\n\\n  two  \\n\\tthree'; echo error >&2"},
        {"command": "printf 'h\\303\\251llo \\342\\230\\203\\n'; echo $0", "_shell_executable": "bash"},
        {"command": "echo before; exit 7"},
        {"command": "kill -TERM $$"},
        {"command": "head -c 300000 /dev/zero | tr '\\0' x | fold -w 100"},
        {"command": "wc -c", "_stdin": ["one", "two"]},
        {"command": "id -un; pwd; echo $HOME", "_su_user": "daemon", "_su_shell": "/bin/sh"},
        {"command": "no-such-command"},
    ],
    "server.EtcHosts": [{}, {"path": f"{PLACE}/hosts"}],
    "server.Home": [{}, {"user": "daemon"}],
    "server.Port": [{"port": 7000}, {"port": 7001, "protocol": "udp"}],
    "server.Processes": [{}, {"pid": 1}],
    "server.Sysctl": [{}, {"keys": ["kernel.ostype", "kernel.pid_max", "net.ipv4.ip_local_port_range"]}],
    "server.Which": [{"command": "sh"}, {"command": "no-such-command"}],
    "snap.SnapPackage": [{"package": "lxd"}],
    "systemd.SystemdEnabled": _SYSTEMD,
    "systemd.SystemdStatus": _SYSTEMD,
    "uv.UvAvailablePythonsByImplementation": _PYTHONS,
    "uv.UvAvailablePythonsByVersion": _PYTHONS,
    "uv.UvInstalledPythonsByImplementation": _PYTHONS,
    "uv.UvInstalledPythonsByVersion": _PYTHONS,
}


def _keys(value: Any) -> Any:
    return sorted(value)


def _type(value: Any) -> Any:
    return type(value).__name__


def _without_usage(devices: dict[str, dict[str, str]]) -> Any:
    return {name: (device["mount"], device["blocks"]) for name, device in devices.items()}


def _first_process(processes: dict[int, dict[str, Any]]) -> Any:
    return processes[1]["user"], processes[1]["args"]


MOVING: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "hardware.BlockDevices": ("other programs write to the disks meanwhile", _without_usage),
    "hardware.Memory": ("the command prints what is free, too, and counters", lambda value: value),
    "server.Date": ("time goes on", _type),
    "server.LoadAverage": ("the load of this machine changes every five seconds", _keys),
    "server.Processes": ("processes come and go, the reading's own among them", _first_process),
    "server.Sysctl": ("many settings are counters, or random at each look", _keys),
    "server.Uptime": ("time goes on", _type),
}
"""Facts that no two looks find the same, why, and what of them must be the same nevertheless."""

EMPTY: Final = {
    "files.Flags": "file flags are set by chflags, which Linux has not",
    "selinux.FileContext": "it asks stat, which knows no context where the kernel is without SELinux",
}
"""Facts of which no reading gives anything here, and why."""

FAILS: Final = frozenset(
    {
        'apt.SimulateOperationWillChange {"command": "remove no-such-package"}',
        'iptables.IptablesRules {"table": "no-such-table"}',
        'server.Command {"command": "echo before; exit 7"}',
        'server.Command {"command": "kill -TERM $$"}',
        'server.Command {"command": "no-such-command"}',
    }
)
"""Readings whose command fails, through either connector with the same exit status; all others succeed."""

OTHER_STDERR: Final = {
    'server.Command {"command": "kill -TERM $$"}': "@local has one more shell around it, which tells of the signal"
}
"""Readings that write something else to stderr, and why."""


def facts() -> Iterator[tuple[str, type[FactBase] | type[ShortFactBase]]]:
    """Yield every fact of the installed pyinfra that can be read, by its name (`server.User`)."""
    for module in pkgutil.walk_packages(pyinfra.facts.__path__, "pyinfra.facts."):
        for name, found in sorted(vars(importlib.import_module(module.name)).items()):
            # A class that is called otherwise than the module calls it is an alias from an earlier release.
            if not inspect.isclass(found) or found.__module__ != module.name or found.__name__ != name:
                continue
            if issubclass(found, FactBase | ShortFactBase) and not _BASE.search(name):
                yield found.name, found


def title(name: str, arguments: dict[str, Any]) -> str:
    """Return how a reading is called in the tables above and in the names of tests."""
    return f"{name} {json.dumps(arguments, ensure_ascii=False)}" if arguments else name


def readings() -> Iterator[tuple[str, type[FactBase] | type[ShortFactBase], dict[str, Any]]]:
    """Yield fact name, class and arguments of everything that is read."""
    for name, fact in facts():
        for arguments in ARGUMENTS.get(name, [{}]):
            yield name, fact, arguments
