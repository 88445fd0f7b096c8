"""What runs left on the file systems of two containers: where they differ."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def written(upper: Path) -> Iterator[str]:
    """Yield what is in the writable layer of a container, as paths relative to its root."""
    for directory, names, files in os.walk(upper):
        for name in (*names, *files):
            yield os.path.relpath(os.path.join(directory, name), upper)


def described(path: Path) -> tuple[object, ...]:
    """Return all that must be equal: type, mode, owner, extended attributes, and content, target or device."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return ("absent",)
    content: object = None
    if stat.S_ISREG(found.st_mode):
        content = path.read_bytes()
    elif stat.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    elif stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode):
        content = found.st_rdev
    attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in _attributes(path)}
    owner = (found.st_uid, found.st_gid)
    return stat.filemode(found.st_mode), *owner, found.st_nlink if _is_file(found) else None, attributes, content


def differences(left: Path, right: Path, paths: set[str], ignored: dict[str, str]) -> dict[str, tuple[object, object]]:
    """Return where two trees differ at *paths*; those that match a pattern of *ignored* are not looked at."""
    pattern = re.compile("|".join(f"(?:{one})" for one in ignored))
    found: dict[str, tuple[object, object]] = {}
    for path in sorted(paths):
        if not pattern.fullmatch(path):
            pair = described(left / path), described(right / path)
            if pair[0] != pair[1]:
                found[path] = pair
    return found


def _is_file(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode)


def _attributes(path: Path) -> list[str]:
    return [name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith("trusted.overlay.")]
