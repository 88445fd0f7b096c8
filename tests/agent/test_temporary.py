from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING

import pytest

from pyinfra_agent._litter import Litter
from pyinfra_agent._upload import Upload
from tests.agent.uploads import (
    put,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_upload_temporary_of_private_file_is_private(tmp_path: Path, no_unnamed_files: None) -> None:
    """Nobody reads from the temporary what they may not read from the file."""
    (tmp_path / "file").touch(0o600)
    upload = Upload.open(os.fsencode(tmp_path / "file"), digest=hashlib.sha256())
    (name,) = set(os.listdir(tmp_path)) - {"file"}
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    upload.abort()


@pytest.mark.usefixtures("either_temporary")
def test_upload_forgets_its_temporary(tmp_path: Path) -> None:
    """After commit, abort and refusal nothing is remembered as unfinished."""
    (tmp_path / "state").mkdir()
    litter = Litter(str(tmp_path / "state"))
    put(tmp_path / "file", litter=litter)
    put(tmp_path / "file", litter=litter)
    Upload.open(os.fsencode(tmp_path / "file"), digest=hashlib.sha256(), litter=litter).abort()
    assert litter._live == set()
    litter.close()
