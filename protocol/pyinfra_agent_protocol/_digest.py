"""The check that both ends of a file transfer compute, and compare before the file is used (SPEC.md section 9).

Nobody can alter a transfer under way: the link authenticates every record, and the session every
frame's place.  What is left to catch is our own mistakes in putting chunks together, and memory that
changed under them.  CRC-32 (that of zlib and RFC 1952 section 8) does that, and is all that is asked of
it here: it says nothing against an attacker, who would have to break the link first.

Measured in one thread of a Zen 4 core at 64 KiB chunks, in MB/s: crc32 2900 to 4100 (by zlib's
version), sha256 1780, blake2b 930.  With SHA-256 it took more of a transfer's time than encryption did.
"""

from __future__ import annotations

import zlib
from typing import Final

__all__ = ["DIGEST_BYTES", "Digest"]

# What a peer must agree with.
DIGEST_BYTES: Final = 4


class Digest:
    """A running check over the chunks of one transfer, wherever they are cut."""

    __slots__ = ("_crc",)

    def __init__(self) -> None:
        self._crc = 0

    def update(self, chunk: bytes | bytearray | memoryview, /) -> None:
        """Add *chunk*; the GIL is released for all but the smallest."""
        self._crc = zlib.crc32(chunk, self._crc)

    def digest(self) -> bytes:
        """Return the `DIGEST_BYTES` over everything so far, big endian; more may be added afterwards."""
        return self._crc.to_bytes(DIGEST_BYTES, "big")
