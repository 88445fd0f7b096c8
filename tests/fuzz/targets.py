"""Every fuzz target: a function of bytes that returns, or raises what nobody documented.

A target catches the exceptions that the docstring of what it calls lists, and nothing else: its `except` is the
contract. `TARGETS` is what `run.py` and `test_fuzz.py` go through.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Final

from tests.fuzz.hostile_targets import fuzz_session_agent, fuzz_session_connector
from tests.fuzz.link_targets import fuzz_initiator, fuzz_records, fuzz_responder
from tests.fuzz.message_targets import fuzz_frames, fuzz_map, fuzz_message
from tests.fuzz.pair_targets import fuzz_session_pair
from tests.fuzz.text_targets import fuzz_key_lines, fuzz_known_agents, fuzz_names, fuzz_output, fuzz_printable

__all__ = ["INPUT_MAX_BYTES", "TARGETS", "Target", "run_bounded"]

Target = Callable[[bytes], None]

INPUT_MAX_BYTES: Final = 4096
#: Processor time, not the clock's: other processes may keep this one waiting. Coverage makes it several times slower.
SECONDS_MAX: Final = 5.0
#: One input is worth a few buffers of a record, a window of two, and what unpacking allocates for headers alone.
GROWTH_MAX_BYTES: Final = 128 * 1024 * 1024

TARGETS: Final[dict[str, Target]] = {
    target.__name__.removeprefix("fuzz_"): target
    for target in (
        fuzz_responder,
        fuzz_initiator,
        fuzz_records,
        fuzz_session_agent,
        fuzz_session_connector,
        fuzz_session_pair,
        fuzz_frames,
        fuzz_map,
        fuzz_message,
        fuzz_key_lines,
        fuzz_names,
        fuzz_known_agents,
        fuzz_printable,
        fuzz_output,
    )
}


def run_bounded(target: Target, data: bytes) -> None:
    """Run *target* on *data*; an input that costs too much time or memory is a finding too."""
    started, before = time.process_time(), _peak_bytes()
    target(data)
    seconds, growth = time.process_time() - started, _peak_bytes() - before
    assert seconds <= SECONDS_MAX, f"one input took {seconds:.1f} s"
    assert growth <= GROWTH_MAX_BYTES, f"one input took {growth / 2**20:.0f} MiB"


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
