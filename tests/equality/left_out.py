"""Operations that `operations.py` does not run, and why; `module.*` is all of a module that is not run."""

from __future__ import annotations

from typing import Final

_OTHER_SYSTEM: Final = "the tool belongs to another distribution or system"
_FROM_NETWORK: Final = "what it installs comes from the network"
_SERVER: Final = "needs a server that is not installed"

LEFT_OUT: Final = {
    "apk.*": _OTHER_SYSTEM,
    "brew.*": _OTHER_SYSTEM,
    "bsdinit.*": _OTHER_SYSTEM,
    "choco.*": _OTHER_SYSTEM,
    "dnf.*": _OTHER_SYSTEM,
    "freebsd.freebsd_update.*": _OTHER_SYSTEM,
    "freebsd.pkg.*": _OTHER_SYSTEM,
    "freebsd.service.*": _OTHER_SYSTEM,
    "freebsd.sysrc.*": _OTHER_SYSTEM,
    "launchd.*": _OTHER_SYSTEM,
    "openrc.*": _OTHER_SYSTEM,
    "opkg.*": _OTHER_SYSTEM,
    "pacman.*": _OTHER_SYSTEM,
    "pkg.*": _OTHER_SYSTEM,
    "pkgin.*": _OTHER_SYSTEM,
    "selinux.*": "the kernel runs without SELinux",
    "upstart.*": _OTHER_SYSTEM,
    "vzctl.*": _OTHER_SYSTEM,
    "xbps.*": _OTHER_SYSTEM,
    "yum.*": _OTHER_SYSTEM,
    "zfs.*": "the kernel has no zfs",
    "zypper.*": _OTHER_SYSTEM,
    "cargo.*": _FROM_NETWORK,
    "flatpak.*": _FROM_NETWORK,
    "gem.*": _FROM_NETWORK,
    "go.*": _FROM_NETWORK,
    "npm.*": _FROM_NETWORK,
    "pipx.*": _FROM_NETWORK,
    "snap.*": _FROM_NETWORK,
    "uv.*": _FROM_NETWORK,
    "docker.*": _SERVER,
    "lxd.*": _SERVER,
    "mysql.*": _SERVER,
    "postgres.*": _SERVER,
    "postgresql.*": _SERVER,
    "puppet.*": _SERVER,
    "iptables.*": "iptables is not installed, and rules are the network's, not the file system's",
    "ssh.*": "they run ssh on the target, to a third machine",
    "apt.ppa": "asks Launchpad for the archive",
    "files.flags": "sets flags by chflags, which Linux has not",
    "pip.virtualenv": "pip.venv is the same with venv's own tool; virtualenv comes from the network",
    "python.raise_exception": "ends the deploy; test_api_users.py has it",
    "runit.service": "needs a running runit",
    "runit.wait_runsv": "needs a running runit",
    "server.reboot": "@local would reboot under its own pyinfra",
}
