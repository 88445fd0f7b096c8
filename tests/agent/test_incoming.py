from __future__ import annotations

import hashlib
import os

import pytest

from pyinfra_agent._incoming import open_spool


@pytest.mark.parametrize("size", [None, 10, 2 << 20])
def test_spool_is_nameless_private_and_rewound(size: int | None) -> None:
    """A verified spool is read from its start, and nobody else can open it."""
    spool = open_spool(b"/target", hashlib.sha256(), size)
    spool.write([b"01234", b"56789"])
    spool.verify(10, hashlib.sha256(b"0123456789").digest())
    assert os.read(spool.fd, 100) == b"0123456789"
    assert os.fstat(spool.fd).st_nlink == 0
    spool.close()
    spool.close()
