"""Records outside any session: the answer to a handshake, and a last word (SPEC.md sections 4 and 11).

The agent's first record is WELCOME or DENIED.  Between message 3 and this record the connector sends
nothing; every denial is byte for byte the same before encryption, whatever its reason.
"""

from __future__ import annotations

from ._errors import FrameInvalid
from ._frames import FrameType, encode_header, split_frames
from ._messages import Goodbye, Welcome

__all__ = ["decode_answer", "encode_denied", "encode_goodbye", "encode_welcome"]


def encode_welcome(welcome: Welcome) -> bytes:
    """Return the plaintext of the record that welcomes the controller."""
    body = welcome.encode()
    return encode_header(FrameType.WELCOME, 0, 0, len(body)) + body


def encode_denied() -> bytes:
    """Return the plaintext of the one identical record that turns a controller away."""
    return encode_header(FrameType.DENIED, 0, 0, 0)


def encode_goodbye(code: str, text: str) -> bytes:
    """Return the plaintext of a GOODBYE for a link that carries no session, or no longer."""
    body = Goodbye(code, text[:1024]).encode()
    return encode_header(FrameType.GOODBYE, 0, 0, len(body)) + body


def decode_answer(plaintext: bytes | bytearray) -> Welcome | None:
    """Read the agent's first record: the welcome, or None if it denies us.

    Raises:
        RemoteProtocolError: it is neither.
    """
    frames = split_frames(plaintext)
    if len(frames) == 1 and not frames[0].channel:
        kind, body = frames[0].kind, frames[0].body
        if kind is FrameType.WELCOME:
            return Welcome.decode(body)
        if kind is FrameType.DENIED and not body:
            return None
    raise FrameInvalid("the agent's first record is no answer to the handshake")
