"""Which boot this is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyinfra_agent import _boot
from pyinfra_agent._boot import boot_id

KERNEL = Path("/proc/sys/kernel/random/boot_id")


def test_boot_is_the_same_until_the_next():
    """Another process says the same, which is the kernel's word and more."""
    words = [sys.executable, "-c", "from pyinfra_agent._boot import boot_id; print(boot_id())"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    assert said == boot_id()
    assert said.startswith(KERNEL.read_text().strip())


@pytest.mark.skipif(os.geteuid() != 0, reason="a process namespace needs root")
def test_containers_that_share_a_kernel_do_not_share_a_boot():
    """An init of its own is a boot of its own, though the kernel goes on."""
    words = [sys.executable, "-c", "from pyinfra_agent._boot import boot_id; print(boot_id())"]
    inside = ["unshare", "--pid", "--fork", "--mount-proc", *words]
    first, second = (subprocess.run(inside, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert len({first.strip(), second.strip(), boot_id()}) == 3
    assert all(said.startswith(KERNEL.read_text().strip()) for said in (first, second))


def test_boot_is_unknown_where_nothing_tells(monkeypatch, tmp_path):
    monkeypatch.setattr(_boot, "_KERNEL", str(tmp_path / "boot_id"))
    monkeypatch.setattr(_boot, "_INIT", str(tmp_path / "stat"))
    assert boot_id() == ""
    (tmp_path / "stat").write_text("1 (a) b) S 0")
    assert boot_id() == ""
