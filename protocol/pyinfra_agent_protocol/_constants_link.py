"""Numbers of the secure link. Every length is in bytes.

All of them are specification: both peers must agree on each, so a change of any is a new major version.
"""

from __future__ import annotations

from typing import Final

# Prefaces: the initiator's is the Noise prologue, the responder's carries the chosen suite.
MAGIC: Final = b"pyinfra-agent"
VERSION: Final = 1
MAX_SUITES: Final = 16
MAX_CONTROLLER_PREFACE: Final = len(MAGIC) + 2 + MAX_SUITES  # magic, version, number of suites, suites
AGENT_PREFACE: Final = len(MAGIC) + 2  # magic, version, suite

# Noise (revision 34), sections 4.1 to 4.3.
KEY: Final = 32  # DHLEN, and the length of a cipher key
TAG: Final = 16
HASH: Final = 64  # HASHLEN of BLAKE2b
MAX_NONCE: Final = 2**64 - 1  # reserved for rekeying, never used for a record

# Messages 2 and 3 and every record travel behind a length of two bytes, big endian.
LENGTH: Final = 2
MAX_MESSAGE: Final = 4096
MAX_AGENT_PAYLOAD: Final = MAX_MESSAGE - (KEY + KEY + TAG + TAG)  # message 2: e, encrypted s, tag
MAX_CONTROLLER_PAYLOAD: Final = MAX_MESSAGE - (KEY + TAG + TAG)  # message 3: encrypted s, tag

MAX_RECORD: Final = 65_535
MAX_PLAINTEXT: Final = MAX_RECORD - TAG
REKEY_AFTER_RECORDS: Final = 2**16

# Certificates (SPEC.md section 16). One travels in message 2 or 3, and leaves room for the rest of its payload.
CERTIFICATE_MAX_BYTES: Final = 2048
