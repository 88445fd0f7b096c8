"""An upload that is killed at each of its steps in turn: the old file or the new one, and nothing that stays."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pyinfra_agent._litter import Litter
from tests.steps import killed_at_each_step

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = b"old" * 1000, b"new" * 1000

UPLOAD = """
import hashlib
from pyinfra_agent._litter import Litter
from pyinfra_agent._upload import SyncPolicy, Upload

path, state, sync, temporaries = sys.argv[1:]
new = b"new" * 1000
access = os.access
if temporaries == "named":
    # As where a file cannot be without a name.
    os.access = lambda path, *mode: path != "/proc/self/fd" and access(path, *mode)

def act():
    litter = Litter(state)
    upload = Upload.open(os.fsencode(path), digest=hashlib.sha256(), sync=SyncPolicy(sync), litter=litter)
    upload.write([new])
    upload.commit(len(new), hashlib.sha256(new).digest())
"""


@pytest.mark.parametrize("temporaries", ["named", "unnamed"])
@pytest.mark.parametrize("sync", ["none", "full"])
@pytest.mark.parametrize("exists", [True, False], ids=["replaced", "new"])
def test_upload_killed_at_any_step_leaves_old_or_new(tmp_path: Path, exists: bool, sync: str, temporaries: str) -> None:
    """Whatever the step, the file is whole, and the next start sweeps what is left beside it."""
    directory, state = tmp_path / "directory", tmp_path / "state"
    directory.mkdir()
    state.mkdir()
    path = directory / "file"
    old = OLD if exists else None
    outcomes = []

    def reset() -> None:
        path.unlink(missing_ok=True)
        if old is not None:
            path.write_bytes(old)

    reset()
    with killed_at_each_step(UPLOAD, path, state, sync, temporaries) as runs:
        for _ in runs():
            outcomes.append(path.read_bytes() if path.exists() else None)
            assert outcomes[-1] in (old, NEW)
            litter = Litter(str(state))
            litter.sweep()
            litter.close()
            assert os.listdir(directory) == (["file"] if outcomes[-1] is not None else [])
            reset()
    assert len(outcomes) > 10
    # Once the new file is there, it stays.
    assert outcomes == sorted(outcomes, key=lambda content: content == NEW)
