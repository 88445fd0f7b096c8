"""Records: what a link carries once its handshake is done (SPEC.md section 5). Bytes in and out, no IO.

    u16 length ‖ ciphertext, whose last 16 bytes are its tag

A record's plaintext is what a session makes of frames; here it is bytes. What a peer can make us hold beside the chunk
being read is one record.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from ._constants import DATA_BODY_BYTES, FRAME_HEADER_BYTES
from ._constants_link import LENGTH, MAX_PLAINTEXT, TAG
from ._errors import LocalProtocolError, RecordInvalid
from ._phase import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ._noise import CipherState

__all__ = ["Transport"]

_LENGTH: Final = struct.Struct(">H")
_ROOM_FOR_TAG: Final = bytes(TAG)
#: A record that holds a bulk transfer's DATA frame and nothing else.
_DATA_RECORD_BYTES: Final = LENGTH + FRAME_HEADER_BYTES + DATA_BODY_BYTES + TAG
# glibc gives what was freed at the end of the heap back to the kernel at once, and gets it again, page by page, with
# the next block; unless it has seen that large ones come and go. So it sees one: nobody ever touches its pages.
_ = bytes(4 << 20)
del _
#: Up to here a plaintext is worth a copy that makes it bytes.
_SHORT_BYTES: Final = 4096


class Transport(Phase):
    """The records of one link, made by `Initiator.finish` and `Responder.transport`.

    Attributes:
        handshake_hash: 64 bytes that both sides, and no other link, have: binds a signature to this link.
    """

    def __init__(
        self, send: CipherState, receive: CipherState, *, handshake_hash: bytes, rekey_after: int, pending: bytes
    ) -> None:
        self.handshake_hash = handshake_hash
        self._send = send
        self._receive = receive
        self._rekey_after = rekey_after
        self._pending = pending
        self._records = _RecordBuffer()

    def encrypt(self, plaintext: bytes) -> bytes:
        """Return the whole record of *plaintext*; raises as `encrypt_records`."""
        return bytes(self.encrypt_records([(plaintext,)]))

    def encrypt_records(self, plaintexts: Iterable[Sequence[bytes | memoryview]]) -> bytearray:
        """Return the records of *plaintexts*, each in parts, one behind the other; empty for none of them.

        They must reach the peer in the order in which they were made. Each byte is copied once, on its way into what
        is returned, and encrypted there.

        Raises:
            LocalProtocolError: one has more than `MAX_PLAINTEXT` bytes (nothing was encrypted, the transport lives on).
        """
        self._require_usable()
        pieces: list[bytes | memoryview] = []
        ranges: list[tuple[int, int]] = []
        at = 0
        for parts in plaintexts:
            size = sum(map(len, parts))
            if size > MAX_PLAINTEXT:
                raise LocalProtocolError(f"a record holds {MAX_PLAINTEXT} bytes, not {size}")
            pieces.append(_LENGTH.pack(size + TAG))
            pieces += parts
            pieces.append(_ROOM_FOR_TAG)
            ranges.append((at + LENGTH, at + LENGTH + size))
            at += LENGTH + size + TAG
        records = bytearray().join(pieces)
        # As `_fatal`, but written out: a generator-based context costs a tenth of encrypting a small record.
        try:
            for start, end in ranges:
                self._send.seal(records, start, end)
                self._rekey_if_due(self._send)
        except BaseException:
            self._ended = "an error"
            raise
        return records

    def receive_data(self, data: bytes | memoryview) -> list[bytes | bytearray]:
        """Take bytes of the peer; return the plaintexts of the records that are now complete, in order.

        Of *data* nothing is kept but a copy: its buffer may be used again. Short plaintexts are bytes, longer ones
        bytearrays that belong to the caller.

        Raises:
            RecordInvalid: a record has no room for a tag, or its tag does not verify. What the same *data* held
                before it is lost with it.
        """
        self._require_usable()
        try:
            if self._pending:
                data, self._pending = self._pending + data, b""
            return [self._open(*found) for found in self._records.feed(data)]
        except BaseException:
            self._ended = "an error"
            raise

    def read_size(self, most: int) -> int:
        """Return how many bytes to read next, at most *most*: those after which a bulk transfer cuts no record.

        One that is cut is copied. *most* has to be at least as long as two records.
        """
        missing = self._records.missing
        return missing + (most - missing) // _DATA_RECORD_BYTES * _DATA_RECORD_BYTES

    def receive_eof(self) -> None:
        """Note that the peer will send no more.

        Raises:
            RecordInvalid: it stopped within a record.
        """
        with self._fatal():
            if self._pending or self._records.incomplete:
                raise RecordInvalid("the connection ended within a record")

    def _open(self, data: bytes | memoryview, start: int, end: int) -> bytes | bytearray:
        plaintext = self._receive.open(data, start, end)
        self._rekey_if_due(self._receive)
        return plaintext if len(plaintext) > _SHORT_BYTES else bytes(plaintext)

    def _rekey_if_due(self, cipher: CipherState) -> None:
        # The counter runs on across a rekey (Noise section 11.3), so it says on both sides when the next is due.
        if cipher.n % self._rekey_after == 0:
            cipher.rekey()


class _RecordBuffer:
    """Cuts a byte stream into ciphertexts; holds at most one incomplete record.

    A record that lies whole in one chunk is not copied. A cut one is, and its first part twice, so that a peer that
    sends single bytes makes us hold the bytes and not an object for each.
    """

    def __init__(self) -> None:
        self._partial = bytearray()

    @property
    def incomplete(self) -> bool:
        return bool(self._partial)

    @property
    def missing(self) -> int:
        """Bytes that the incomplete record lacks, as far as it is known; 0 without one."""
        if len(self._partial) < LENGTH:
            return 0
        return LENGTH + _ciphertext_length(self._partial, 0) - len(self._partial)

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[bytes | memoryview, int, int]]:
        """Yield the ciphertexts that *data* completes: in what each stands, from where, and up to where."""
        view = memoryview(data)
        position = 0
        if self._partial:
            position = max(0, LENGTH - len(self._partial))
            self._partial += view[:position]
            if len(self._partial) < LENGTH:
                return
            end = position + self.missing
            if end > len(data):
                self._partial += view[position:]
                return
            partial, self._partial = self._partial, bytearray()
            joined = b"".join((partial, view[position:end]))
            yield joined, LENGTH, len(joined)
            position = end
        while len(data) - position >= LENGTH:
            end = position + LENGTH + _ciphertext_length(data, position)
            if end > len(data):
                break
            yield data, position + LENGTH, end
            position = end
        self._partial += view[position:]


def _ciphertext_length(data: bytes | bytearray | memoryview, position: int) -> int:
    length: int = _LENGTH.unpack_from(data, position)[0]
    if length < TAG:
        raise RecordInvalid(f"a record of {length} bytes has no room for its tag")
    return length
