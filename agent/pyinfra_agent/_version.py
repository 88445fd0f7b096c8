"""The version of the software, as its peers and `--version` are told."""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from typing import Final

__all__ = ["software_version"]

_DISTRIBUTION: Final = "pyinfra-agentd"
#: What an installer names the directory with what it knows of us (PyPA's "Recording installed projects").
_INSTALLED: Final = re.compile(r"pyinfra_agentd-([^-]+)\.dist-info")


@cache
def software_version() -> str:
    """Return the installed version of this distribution."""
    for directory in sys.path:
        try:
            found = list(filter(None, map(_INSTALLED.fullmatch, os.listdir(directory or "."))))
        except OSError:
            continue
        if len(found) == 1:
            return found[0][1]
    # Installed in another manner, by a distribution perhaps. It costs a mebibyte, hence last.
    from importlib import metadata

    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
