"""What a service says to its service manager about descriptors (sd_notify(3), FDSTORE=; sd_listen_fds(3)).

systemd keeps the descriptors that a service gives it, and gives them to the service's next process. They need
FileDescriptorStoreMax= in the unit.
"""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING, Final

from ._log import log

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["DescriptorStore", "listed_descriptors"]

_FIRST: Final = 3  # SD_LISTEN_FDS_START
_BARRIER_MILLISECONDS: Final = 5000


def listed_descriptors(environment: Mapping[str, str]) -> list[tuple[str, int]]:
    """Return the descriptors that the service manager gave this process, with their names; none is inherited on."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    numbers = range(_FIRST, _FIRST + int(environment.get("LISTEN_FDS", "0")))
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    for number in numbers:
        os.set_inheritable(number, False)
    return [(names[place] if place < len(names) else "", number) for place, number in enumerate(numbers)]


class DescriptorStore:
    """The store of this service."""

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> DescriptorStore | None:
        """Return the store of the service that was started with this environment; None without a service manager."""
        address = environment.get("NOTIFY_SOCKET")
        return cls(address) if address else None

    def put(self, name: str, descriptor: int) -> bool:
        """Give a descriptor to the manager; returns once it has it. It is kept even while its other end is closed.

        Returns whether the manager answered, which it also does if the unit lets it store none.
        """
        return self._say(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", [descriptor]) and self._wait_until_heard()

    def remove(self, name: str) -> None:
        """Let the manager close all descriptors of this name."""
        self._say(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def _say(self, text: str, descriptors: Sequence[int] = ()) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
                speaker.connect(self._address)
                socket.send_fds(speaker, [text.encode()], list(descriptors))
        except OSError as error:
            log("manager-not-told", error=error.strerror)
            return False
        return True

    def _wait_until_heard(self) -> bool:
        """Wait until everything that was said before was read: whoever dies sooner may not be believed."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            said = self._say("BARRIER=1", [writer])
            os.close(writer)
            asked = select.poll()
            asked.register(reader, 0)
            return said and bool(asked.poll(_BARRIER_MILLISECONDS))
        finally:
            os.close(reader)
