"""The version of the software, as its peers and `--version` are told."""

from __future__ import annotations

from functools import cache
from importlib import metadata

__all__ = ["software_version"]


@cache
def software_version() -> str:
    """Return the installed version of this distribution."""
    try:
        return metadata.version("pyinfra-agentd")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
