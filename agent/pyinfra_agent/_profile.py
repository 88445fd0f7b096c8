"""What this agent says about itself to whoever looks for agents, by multicast DNS and in a DNS zone."""

from __future__ import annotations

import itertools
import platform
import re
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol.advert import MAX_WORD_CHARACTERS, Advert, BadAdvert
from pyinfra_agent_protocol.keys import fingerprint

from ._version import software_version

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["Profile", "machine_name", "profile"]

MAX_NAMES: Final = 100  # tried one after the other, where others have them

_MAX_LABEL_CHARACTERS: Final = 48  # RFC 1035: 63, with room for `-100-agent`
_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9]+")
_OS_RELEASE: Final = ("/etc/os-release", "/usr/lib/os-release")  # os-release(5)
_OS_NAME: Final = re.compile(r"""^PRETTY_NAME=(["']?)(.*)\1$""", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Profile:
    """One agent, wherever it can be reached.

    Attributes:
        name: of its machine.
        port: TCP port.
        advert: its other words.
    """

    name: str
    port: int
    advert: Advert

    def names(self) -> Iterator[str]:
        """Yield the names to go by, the best first: web1, web1-2, web1-3 and so on."""
        yield self.name
        for number in range(2, MAX_NAMES + 1):
            yield f"{self.name}-{number}"


def profile(key: bytes, port: int, groups: Collection[str]) -> Profile:
    """Return the profile of this machine's agent whose public key is *key*."""
    full = Advert(fingerprint(key), tuple(groups), _os_name(), _word(platform.machine()), _word(software_version()))
    # Long groups leave no room for what can be asked once one is connected.
    for advert in (full, replace(full, os=""), replace(full, os="", arch="", software="")):
        try:
            advert.strings()
        except BadAdvert:
            continue
        return Profile(machine_name(), port, advert)
    raise AssertionError("the configuration took groups that do not fit")


def machine_name() -> str:
    """Return this machine's host name up to the first dot, as something that can stand in any name."""
    label = _NOT_IN_NAMES.sub("-", socket.gethostname().partition(".")[0].lower())
    return label[:_MAX_LABEL_CHARACTERS].strip("-") or "agent"


def _os_name() -> str:
    for path in _OS_RELEASE:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                found = _OS_NAME.search("".join(itertools.islice(file, 100)))
        except OSError:
            continue
        if found is not None:
            return _word(found[2])
    return _word(platform.system())


def _word(text: str) -> str:
    printable = "".join(c for c in text if c.isprintable() and c != "\ufffd")
    return printable[:MAX_WORD_CHARACTERS]
