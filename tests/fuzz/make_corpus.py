"""Write the seeds in corpus/: valid inputs, made by the real encoders, from which a fuzzer starts.

    python tests/fuzz/make_corpus.py

Run it after a change of the wire format or of how a target reads its input; `test_fuzz.py` says when. Files with other
names are left alone: an input that once failed is added as `corpus/TARGET/regression-WHAT`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
CORPUS: Final = Path(__file__).parent / "corpus"

if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]

from pyinfra_agent_protocol import FrameInvalid, Welcome, encode_denied, encode_goodbye, encode_welcome  # noqa: E402
from pyinfra_agent_protocol._frames import FrameType, encode_counter, encode_header  # noqa: E402
from pyinfra_agent_protocol.keys import format_public, format_secret  # noqa: E402
from tests.fuzz.link_targets import AGENT, CONTROLLER, SUITES, genuine  # noqa: E402
from tests.fuzz.message_targets import SAMPLES  # noqa: E402

_SETTINGS: Final = bytes([0, 0, 0])  # how a session's program begins: two budgets, requests at once
_HOSTILE: Final = b"\0" + _SETTINGS  # before them: how much is retained
_PAIR: Final = _SETTINGS + _SETTINGS


def seeds() -> dict[str, bytes]:
    """Return every seed by its path below corpus/."""
    texts = format_public(AGENT.public, "web1"), format_secret(CONTROLLER, "laptop")
    found = {
        # Suite, edits of nothing or of message 1, and of message 3; what follows them; where each is cut.
        "responder/handshake": bytes([0, 1, 0, 1, 0, 0, 0, 0, 0, 0]),
        "responder/cut-handshake": bytes([0, 1, 0, 1, 0, 0, 0, 5, 14, 0, 3, 60, 0, 0]),
        "responder/changed": bytes([0, 1, 5, 0, 20, 0, 3, 1, 0, 0, 0, 0, 0, 0]),
        "responder/raw": b"\0\0\0\0\0" + _u16(genuine(SUITES[0]).opening),
        "responder/other-protocol": b"\0\0\0\0\0" + _u16(b"SSH-2.0-OpenSSH_9.2\r\n"),
        "initiator/handshake": bytes([0, 1, 0, 0, 0, 0]),
        "initiator/cut-handshake": bytes([0, 1, 0, 0, 0, 14, 2, 1, 40, 0]),
        "initiator/changed": bytes([0, 1, 5, 0, 30, 0, 3]),
        "initiator/raw": b"\0\0\0" + _u16(genuine(SUITES[0]).answer),
        "initiator/other-protocol": b"\0\0\0" + _u16(b"HTTP/1.1 400 Bad Request\r\n"),
        "records/three": bytes([0, 0, 3, 10, 0, 255, 0, 0, 0]),
        "records/rekeyed-and-cut": bytes([0, 1, 4, 1, 2, 3, 4, 0, 0, 3, 19, 30, 0]),
        "records/changed": bytes([0, 0, 2, 9, 9, 5, 0, 40, 0, 2]),
        "frames/welcome": encode_welcome(Welcome("resumed", 7, 256, 60)),
        "frames/denied": encode_denied(),
        "frames/goodbye": encode_goodbye(FrameInvalid.code, "what was wrong"),
        "frames/several": b"".join(
            encode_header(kind, 0, channel, 8) + encode_counter(channel)
            for kind, channel in ((FrameType.ACK, 0), (FrameType.CREDIT, 1), (FrameType.BLOCKED, 2))
        ),
        "key_lines/public": texts[0].encode(),
        "key_lines/secret": b"# a comment\n\n" + texts[1].encode() + b"\n",
        "key_lines/second-spelling": texts[0].replace("Q= ", "R= ").encode(),  # the same 32 bytes
        "known_agents/two": f"# mine\nweb1:7963 {texts[0]}\n[2001:db8::1]:80 {texts[0]}\nweb2 {texts[1]}\n".encode(),
        "printable/colours": b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07 \xc2\x9b5m \xe2\x80\xae tab\t \xff \x1b[2J",
        "output/progress": b"\0" + _u16(b"10%\r20%\r\nsecond\xc3\xa9 \x1b[3") + bytes([3, 9, 2, 0]),
        "output/endless": b"\x0f\x0a" + _u16(b"\xe2\x82\xac\x1b[31m...") + bytes([200, 30, 250, 0]),
        # A record with OPEN of the second request; DATA and END; answer, write, the ACK.
        "session_agent/exec": _HOSTILE
        + bytes([0, 0, 0, 0, 0, 0, 0, 1, 0, 0])
        + bytes([0, 1, 0, 1, 0, 0, 0, 50, 0, 0, 2, 0, 0, 0, 0, 0])
        + bytes([12, 0, 0, 1, 0, 7, 0, 0, 0, 6, 0, 1, 0, 0, 0]),
        "session_agent/window": _HOSTILE + bytes([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 4, 0, 0, 1, 7, 4, 0, 0, 1, 7]),
        "session_agent/resume": _HOSTILE + bytes([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 8, 0, 0, 200, 0, 0, 7, 10, 0, 0, 7]),
        # OPEN is written; DATA comes, then the result.
        "session_connector/exec": _HOSTILE
        + bytes([12, 1, 5, 0, 1])
        + bytes([0, 0, 0, 0, 0, 0, 50, 0])
        + bytes([0, 1, 0, 0, 0, 0, 0, 0, 7]),
        # A signal waits to be written while the result arrives.
        "session_connector/late-signal": _HOSTILE + bytes([12, 1, 5, 14, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7]),
        "session_connector/window": _HOSTILE + bytes([12, 1, 7, 4, 0, 0, 1, 7, 4, 0, 0, 1, 7]),
        "session_connector/resume": _HOSTILE + bytes([12, 1, 7, 8, 0, 0, 50, 0, 0, 7, 10, 0, 0, 7, 14, 0, 0, 1, 7]),
        # Open, written and arrived; bulk down; the link is lost, or the answer comes.
        "session_pair/exec": _PAIR + bytes([0, 3, 0, 5, 0, 1, 1, 3, 0, 0, 3, 1, 5, 1, 7, 0, 0, 255, 9, 0, 3, 1, 5, 1]),
        "session_pair/lost-link": _PAIR + bytes([0, 3, 0, 5, 0, 1, 1, 4, 1, 0, 3, 1, 10, 0, 1, 3, 1, 5, 1, 9, 0]),
    }
    found |= {f"message/{index:02}": bytes([index, 0]) for index in range(0, len(SAMPLES), 6)}
    found |= {f"map/{index:02}": sample for index, sample in enumerate(SAMPLES)}
    names = "", "Web1.example:80", "[2001:db8::1]:7963", "fe80::1%eth0", "10.0.0.0/24", "dns:example.com", "known"
    found |= {f"names/{index:02}": b"\0" + name.encode() for index, name in enumerate(names)}
    return found


def _u16(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


if __name__ == "__main__":
    for name, seed in seeds().items():
        path = CORPUS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(seed)
