"""The wheels of a directory in one file, for targets that reach no package index."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["PackedWheels", "WheelError", "packed_wheels"]

# Kept for their names: a temporary file goes when nobody holds it any more, at the latest with the process.
_packed: list[Any] = []


class WheelError(Exception):
    """A directory does not hold what is to be installed; the text says how to fill it."""


class PackedWheels(NamedTuple):
    """A local tar file, and its SHA-256 in hexadecimal digits."""

    path: str
    sha256: str


@cache
def packed_wheels(directory: Path, distribution: str, version: str) -> PackedWheels:
    """Return a tar file of all wheels in *directory*; it is made once, for all hosts.

    Raises:
        WheelError: the directory, or the distribution in this version, is not there.
    """
    if not directory.is_dir():
        raise WheelError(f"wheel_dir {directory} is no directory on this machine")
    wheels = sorted(directory.glob("*.whl"))
    ours = f"{distribution.replace('-', '_')}-{version}-"
    if not any(wheel.name.startswith(ours) for wheel in wheels):
        raise WheelError(
            f"wheel_dir {directory} has no {ours}*.whl: fill it with"
            f" `pip wheel --wheel-dir {directory} '{distribution}[agent]=={version}'`"
        )
    packed = tempfile.NamedTemporaryFile(prefix="pyinfra-agent-wheels-", suffix=".tar")  # noqa: SIM115 - as said above
    _packed.append(packed)
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for wheel in wheels:
            archive.add(wheel, arcname=wheel.name)
    packed.flush()
    return PackedWheels(packed.name, hashlib.sha256(Path(packed.name).read_bytes()).hexdigest())
