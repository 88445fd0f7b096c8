"""The wheels of a directory, for targets that reach no index."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from pyinfra_agent_connector._wheels import WheelError, packed_wheels


def test_packed_wheels_are_the_wheels_of_the_directory(tmp_path):
    for name in ("pyinfra_agentd-1.0-py3-none-any.whl", "trio-1-py3-none-any.whl", "notes.txt"):
        (tmp_path / name).write_text(name)

    packed = packed_wheels(tmp_path, "pyinfra-agentd", "1.0")

    assert hashlib.sha256(Path(packed.path).read_bytes()).hexdigest() == packed.sha256
    with tarfile.open(packed.path) as archive:
        assert archive.getnames() == ["pyinfra_agentd-1.0-py3-none-any.whl", "trio-1-py3-none-any.whl"]
    assert packed_wheels(tmp_path, "pyinfra-agentd", "1.0") == packed  # once, for all hosts


def test_packed_wheels_without_our_version_say_how_to_get_it(tmp_path):
    (tmp_path / "pyinfra_agentd-1.0-py3-none-any.whl").touch()

    with pytest.raises(WheelError, match=r"has no pyinfra_agentd-1\.1-\*\.whl: fill it with `pip wheel --wheel-dir"):
        packed_wheels(tmp_path, "pyinfra-agentd", "1.1")


def test_packed_wheels_of_no_directory_are_refused(tmp_path):
    with pytest.raises(WheelError, match="is no directory"):
        packed_wheels(tmp_path / "nowhere", "pyinfra-agentd", "1.0")
