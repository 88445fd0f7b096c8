"""A fleet key of the tests, and what it signs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pyinfra_agent_protocol.certificates import Authority, AuthorityKey, Certificate, format_authority

if TYPE_CHECKING:
    from pathlib import Path

FLEET = AuthorityKey(bytes(range(32)))
STRANGER = AuthorityKey(bytes(range(1, 33)))


def signed(key: bytes, *names: str, role: str = "agent", by: AuthorityKey = FLEET, days=(-1, 1), serial=1, groups=()):
    """Return a certificate's bytes; *days* from now."""
    now = int(time.time())
    begins, ends = (now + int(day * 86400) for day in days)
    return by.sign(Certificate(key, role, names or ("web1",), begins, ends, serial, groups))


def trust_fleet(home: Path, options: str = "", key: AuthorityKey = FLEET) -> Authority:
    """Let the user of *home* believe the fleet key."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "authorities").open("a") as file:
        file.write(f"{options} {format_authority(key.public, 'fleet')}\n".lstrip())
    return Authority(key.public, "fleet")
