"""A file and a link that breaks in the middle of it: the bytes are the same, and few travel twice."""

from __future__ import annotations

import random

import pytest

from pyinfra_agent_protocol._constants import WINDOW_MAX_BYTES, WINDOW_OPEN_BYTES
from tests.faults.helpers import chunks_of, connected, times
from tests.faults.proxy import DEADLY, DOWN, UP, Fault

MIB = 1 << 20
SIZE_BYTES = times(8, 64) * MIB
MANY_CUTS = times(10, 200)
OVERHEAD = 1.05
"""Frames, records and acknowledgements, as a share of the file."""


def put(client, content, there):
    client.put(chunks_of(content), str(there))
    return there.read_bytes()


def get(client, content, there):
    there.write_bytes(content)
    arrived = bytearray()
    client.get(str(there), arrived.extend)
    return bytes(arrived)


DIRECTIONS = pytest.mark.parametrize(("transfer", "direction"), [(put, UP), (get, DOWN)], ids=["put", "get"])


def assert_few_bytes_travelled_twice(proxy, direction, again_max_bytes):
    """What was sent and not yet acknowledged when a link broke is sent again, and no more."""
    assert proxy.received[direction] <= OVERHEAD * SIZE_BYTES + again_max_bytes
    print(f"{direction}: {proxy.received[direction] / SIZE_BYTES:.3f} of the file over {proxy.links} links")


@DIRECTIONS
@pytest.mark.parametrize("seed", range(times(2, 20)))
def test_file_is_whole_after_a_cut(seed, transfer, direction, controller, proxy, tmp_path):
    rng = random.Random(seed)
    content = rng.randbytes(SIZE_BYTES)
    with connected(proxy.port, controller) as client:
        proxy.plan(rng.choice(DEADLY[:3]), direction, rng.randrange(SIZE_BYTES))
        assert transfer(client, content, tmp_path / "file") == content
    assert len(proxy.committed) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert_few_bytes_travelled_twice(proxy, direction, WINDOW_MAX_BYTES)


@DIRECTIONS
def test_file_is_whole_after_many_cuts(transfer, direction, controller, proxy, tmp_path):
    """However many links it takes; each carries it a little further."""
    rng = random.Random(MANY_CUTS)
    content = rng.randbytes(SIZE_BYTES)
    with connected(proxy.port, controller) as client:
        for _ in range(MANY_CUTS):
            proxy.plan(rng.choice(DEADLY[:3]), direction, rng.randrange(SIZE_BYTES))
        assert transfer(client, content, tmp_path / "file") == content
    assert proxy.links > MANY_CUTS // 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    # Links that live this shortly have no time to grow their windows.
    assert_few_bytes_travelled_twice(proxy, direction, MANY_CUTS * WINDOW_OPEN_BYTES)


@DIRECTIONS
@pytest.mark.parametrize("seed", range(times(1, 20)))
def test_file_is_whole_after_a_corrupt_byte(seed, transfer, direction, impatient, controller, proxy, tmp_path):
    rng = random.Random(seed)
    content = rng.randbytes(SIZE_BYTES)
    with connected(proxy.port, controller) as client:
        proxy.plan(Fault.CORRUPT, direction, rng.randrange(SIZE_BYTES))
        assert transfer(client, content, tmp_path / "file") == content
    assert len(proxy.committed) == 1
    assert proxy.links == 2


def test_slow_link_is_not_a_silent_one(impatient, controller, proxy, told, tmp_path):
    """A record that takes longer than the keepalive's patience is a sign of life while it arrives."""
    content = random.Random(1).randbytes(130_000)
    with connected(proxy.port, controller, notify=told.append) as client:
        proxy.segment_seconds = 0.03
        assert get(client, content, tmp_path / "file") == content
        proxy.segment_seconds = 0.0
    assert told == []
    assert proxy.links == 1
