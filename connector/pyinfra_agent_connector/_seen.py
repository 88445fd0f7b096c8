"""What was found lately, so that a host which is missing today can be named.

Nobody connects to what stands here and nothing is trusted because of it: it is only ever shown. So a cache that
cannot be read or written is no cache, without a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ._errors import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Seen", "age_text", "cache_path", "recall", "remember"]

MAX_ENTRIES: Final = 10_000
MAX_FILE_BYTES: Final = 4 * 1024 * 1024
KEPT_SECONDS: Final = 7 * 24 * 3600

_MAX_CHARACTERS: Final = 300
_HOME_MODE: Final = 0o700
_FILE_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Seen:
    """An agent that was found.

    Attributes:
        name: what stands after `@agent/`.
        address: it was at.
        fingerprint: it announced or proved; "" if none.
        where: the network or `dns:ZONE` in which it was found.
        at: by the clock of that time, in seconds since 1970.
    """

    name: str
    address: str
    fingerprint: str
    where: str
    at: int


def cache_path() -> Path:
    """Return the file: in `$XDG_CACHE_HOME/pyinfra-agent`, else in `~/.cache/pyinfra-agent`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path there is invalid and to be ignored.
    directory = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~"), ".cache")
    return directory / "pyinfra-agent" / "seen.json"


def recall() -> tuple[Seen, ...]:
    """Return what was seen in the last week, the latest first."""
    try:
        with open(cache_path(), "rb") as file:
            entries = json.loads(file.read(MAX_FILE_BYTES))
        found = [seen for entry in entries[:MAX_ENTRIES] if (seen := _checked(entry)) is not None]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ()
    oldest = _now() - KEPT_SECONDS
    return tuple(sorted((seen for seen in found if seen.at > oldest), key=lambda seen: -seen.at))


def remember(agents: Iterable[tuple[str, str, str, str]]) -> None:
    """Note that *agents*, each a name, address, fingerprint and where, were seen now."""
    now = _now()
    entries = {(where, name): Seen(name, address, print_, where, now) for name, address, print_, where in agents}
    if not entries:
        return
    for seen in recall():
        entries.setdefault((seen.where, seen.name), seen)
    text = json.dumps([asdict(seen) for seen in list(entries.values())[:MAX_ENTRIES]], indent=0)
    with contextlib.suppress(OSError):
        _replace(cache_path(), text.encode())


def age_text(seen: Seen) -> str:
    """Return how long ago it was, such as `3 h ago`."""
    seconds = max(0, _now() - seen.at)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return "just now"


def _checked(entry: Any) -> Seen | None:  # noqa: ANN401 - whatever the file holds
    texts = [entry[key] for key in ("name", "address", "fingerprint", "where")]
    at = entry["at"]
    if not isinstance(at, int) or not all(isinstance(text, str) and len(text) <= _MAX_CHARACTERS for text in texts):
        return None
    name, address, print_, where = map(one_line, texts)
    return Seen(name, address, print_, where, at)


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=_HOME_MODE, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _now() -> int:
    return int(time.time())
