"""Numbers of the protocol above the record layer, each named once.

The first block is specification: a peer must agree with it (SPEC.md).  The second block is ours to
tune: another implementation may choose otherwise and still interoperate.
"""

from __future__ import annotations

from typing import Final

# --- specification: both peers must agree (SPEC.md sections 5 to 9) ---

#: Default TCP port of an agent.
DEFAULT_PORT: Final = 7963

#: Plaintext of one record: 65,535 bytes of record less the 16 of the tag (SPEC.md section 5).
RECORD_PLAINTEXT_MAX_BYTES: Final = 65_519

#: Type, stream, channel and length in front of each frame's body (SPEC.md section 6).
FRAME_HEADER_BYTES: Final = 8

#: The longest body of a frame: a frame never crosses a record.
FRAME_BODY_MAX_BYTES: Final = RECORD_PLAINTEXT_MAX_BYTES - FRAME_HEADER_BYTES

#: What either side may send on a new channel before it is granted more (SPEC.md section 8).
WINDOW_INITIAL_BYTES: Final = 128 * 1024

#: Length of a session's identifier, chosen by the controller at random.
SESSION_ID_BYTES: Final = 16

#: Of the form of a command that an agent may keep and show.
LABEL_MAX_CHARACTERS: Final = 1024

#: Channel identifiers are unsigned 32-bit numbers from 1; 0 is the session itself.
CHANNEL_ID_MAX: Final = 2**32 - 1

#: Nesting of a message: deeper ones are refused before they are looked at.
MESSAGE_DEPTH_MAX: Final = 4

#: Items of one array or map, in unknown fields too.  Unpacking allocates what a header announces, once
#: for each level of nesting: without this bound 64 KiB would make it take 500 MiB.
MESSAGE_ITEMS_MAX: Final = 4096

#: Frames or bytes received after which an ACK is sent although nothing else is.  A quarter of that many
#: bytes would cost a bulk transfer one more record each way for every four.  Without an open request
#: far fewer bytes are acknowledged at once, so that an idle session makes its peer keep next to nothing.
ACK_EVERY_FRAMES: Final = 32
ACK_EVERY_BYTES: Final = 1024 * 1024
ACK_IDLE_BYTES: Final = 64 * 1024

# --- implementation: ours to tune ---

#: Channels that may be open, or ended and not yet acknowledged, in one session.
CHANNELS_MAX: Final = 256

#: What a channel that carries data is granted as soon as it is open, while the budget lasts.
WINDOW_OPEN_BYTES: Final = 1024 * 1024

#: What one channel's window may grow to: 8 MiB over 50 ms are 160 MB/s.
WINDOW_MAX_BYTES: Final = 8 * 1024 * 1024

#: Windows of one session beyond the initial ones; no growth above it.
SESSION_BUDGET_BYTES: Final = 32 * 1024 * 1024

#: The same over all sessions of one agent.
AGENT_BUDGET_BYTES: Final = 256 * 1024 * 1024

#: Frames kept for a peer that does not acknowledge; no new DATA is sent above it.
RETAINED_MAX_BYTES: Final = 32 * 1024 * 1024

#: A DATA body when one channel has the link for itself.  A little below what a record holds, so
#: that an ACK or a CREDIT in front of it does not split the chunk.
DATA_BODY_BYTES: Final = 65_280

#: Bytes that a channel may hold that were not yet written to the link: as many as whole frames take.
QUEUE_MAX_BYTES: Final = 4 * DATA_BODY_BYTES

#: A DATA body while another channel waits: 16 KiB leave the other one's command undelayed.
DATA_BODY_SHARED_BYTES: Final = 16 * 1024
