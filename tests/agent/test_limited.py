"""Limits for each command: the words before it, and where they cannot be kept."""

from __future__ import annotations

import pytest

from pyinfra_agent import _limited
from pyinfra_agent._limited import limiting_prefix, why_not_limited
from pyinfra_agent._settings import Settings

LIMITED = Settings(memory_max_bytes=1 << 26, tasks_max=20)


@pytest.fixture
def able(tmp_path, monkeypatch):
    """A machine that can keep both limits; returns the root of its cgroups."""
    monkeypatch.setattr(_limited, "_SYSTEMD", tmp_path)
    monkeypatch.setattr(_limited, "_CGROUPS", tmp_path)
    monkeypatch.setattr(_limited.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(_limited.os, "geteuid", lambda: 0)
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    return tmp_path


def test_no_limits_cost_nothing(able):
    assert limiting_prefix(Settings()) == ()
    (able / "cgroup.controllers").unlink()
    assert why_not_limited(Settings()) is None


def test_limits_are_properties_of_a_scope_that_says_nothing_of_the_command(able):
    words = [word.decode() for word in limiting_prefix(LIMITED)]
    assert words[0] == "/usr/bin/systemd-run"
    assert words[-1] == "--"
    assert {"--scope", "--property=MemoryMax=67108864", "--property=TasksMax=20"} < set(words)
    assert any(word.startswith("--description=") for word in words), "or systemd shows the command to everybody"
    assert why_not_limited(LIMITED) is None


def test_controllers_of_version_1_count(able):
    (able / "cgroup.controllers").unlink()
    (able / "memory").mkdir()
    (able / "pids").mkdir()
    assert why_not_limited(LIMITED) is None


def test_missing_controller_is_named(able):
    (able / "cgroup.controllers").write_text("cpu memory\n")
    assert why_not_limited(LIMITED) == "max_tasks cannot be kept here: the kernel offers no pids controller"


def test_agent_of_a_user_cannot_keep_them(able, monkeypatch):
    monkeypatch.setattr(_limited.os, "geteuid", lambda: 1000)
    assert "only root's agent" in why_not_limited(LIMITED)


def test_machine_without_systemd_cannot_keep_them(able, monkeypatch):
    monkeypatch.setattr(_limited, "_SYSTEMD", able / "missing")
    assert "it needs systemd" in why_not_limited(LIMITED)
