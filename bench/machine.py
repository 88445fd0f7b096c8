"""The machine and the software that the figures were taken on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from procfs import MIB

PACKAGES: Final = ("pyinfra", "paramiko", "gevent", "msgpack", "pynacl", "trio", "mitogen")


def facts() -> str:
    """A markdown list."""
    release = platform.release().partition("-")[0]  # behind the dash is who built it
    lines = {
        "Processor": f"{len(os.sched_getaffinity(0))} cores, {_processor()}",
        "Memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // MIB:,} MiB",
        "Kernel": f"{platform.system()} {release} {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Packages": ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name))),
        "OpenSSH": _openssh(),
    }
    return "\n".join(f"- {name}: {value}" for name, value in lines.items())


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _openssh() -> str:
    try:
        return subprocess.run(["ssh", "-V"], capture_output=True, text=True).stderr.strip()
    except OSError:
        return "not installed"
