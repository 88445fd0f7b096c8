"""A large upload over a link that is cut again and again: the same bytes arrive, and little is sent twice."""

from __future__ import annotations

import random
import time

import pytest

from tests.faults.helpers import connected
from tests.faults.proxy import DOWN, UP, Fault, FaultProxy
from tests.files.helpers import MIB, digest_of, times

SIZE_BYTES = times(256, 1024) * MIB
CUTS = times(5, 20)
BLOCK_BYTES = MIB

SENT_AT_MOST = 1.05
"""Of the file's size, all links together: what was under way at each cut is sent again, and frames have headers.

At a cut it is what the sender may have under way unacknowledged, a window: with 1 GiB and 20 cuts, or a quarter of
both, 1.05 leaves 2.56 MiB for each cut, less the headers (0.1 %), while a window is 1 MiB and grows to 8 only where
more is under way than that.
"""


@pytest.fixture
def written(tmp_path):
    """A file of incompressible content, and its digest."""
    path = tmp_path / "local"
    block = random.Random(11).randbytes(BLOCK_BYTES)
    with path.open("wb") as file:
        for number in range(SIZE_BYTES // BLOCK_BYTES):
            file.write(number.to_bytes(8, "big") + block[8:])
    return path, digest_of(path)


def blocks_of(path):
    with path.open("rb", buffering=0) as file:
        while block := file.read(8 * 65_280):
            yield block


@pytest.mark.parametrize(("how", "direction"), [("put", UP), ("get", DOWN)])
def test_large_file_survives_cuts_and_little_is_sent_twice(how, direction, agent, controller, written, tmp_path):
    local, digest = written
    there = tmp_path / "there"
    rng = random.Random(CUTS)
    with FaultProxy(agent.port) as proxy, connected(proxy.port, controller) as client:
        for number in range(CUTS):
            at = (number + rng.random()) * SIZE_BYTES / CUTS
            proxy.plan(rng.choice((Fault.RESET, Fault.CLOSE)), direction, int(at))
        began = time.monotonic()
        if how == "put":
            assert client.put(blocks_of(local), str(there)).size == SIZE_BYTES
        else:
            with there.open("wb", buffering=0) as file:
                client.get(str(local), file.write)
        seconds = time.monotonic() - began
        assert proxy.links == CUTS + 1
        sent = proxy.received[direction] / SIZE_BYTES
    print(f"{how}: {sent:.4f} of the file over {CUTS + 1} links in {seconds:.1f} s")
    assert digest_of(there) == digest
    assert sent < SENT_AT_MOST
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
