"""A newer controller upgrades the agent that an older one has brought."""

from __future__ import annotations

import re
import shutil
from importlib import metadata

import pytest

from tests.enrol.helpers import ROOT, built_wheel, changed, succeeded, unchanged

OLD = "0.0.9"


@pytest.fixture
def older(user, dependencies, tmp_path):
    """How the older version is run and installed: its metadata on the controller, and its wheels."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("protocol", "agent", "connector", "systemd"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    version = metadata.version("pyinfra-agentd")
    text = (ROOT / "pyproject.toml").read_text()
    (copy / "pyproject.toml").write_text(text.replace(f'version = "{version}"', f'version = "{OLD}"', 1))
    wheels = tmp_path / "older"
    wheels.mkdir()
    built_wheel(wheels, copy)
    for wheel in dependencies.glob("*.whl"):
        (wheels / wheel.name).symlink_to(wheel)

    information = tmp_path / "metadata" / f"pyinfra_agentd-{OLD}.dist-info"
    information.mkdir(parents=True)
    for name in ("METADATA", "entry_points.txt"):
        text = metadata.distribution("pyinfra-agentd").read_text(name)
        (information / name).write_text(re.sub(r"^Version: .*$", f"Version: {OLD}", text, count=1, flags=re.MULTILINE))
    return {"wheel_dir": wheels, "PYTHONPATH": information.parent}


def test_enrol_upgrades_to_the_version_of_the_controller(user, target, older):
    """The key, the pin and who is let in stay as they are."""
    changed(user.enrol(**older))
    assert succeeded(target.run("/opt/pyinfra-agent/bin/pyinfra-agent", "--version")).split()[1] == OLD
    pins = user.pins()

    changed(user.enrol())

    version = succeeded(target.run("/opt/pyinfra-agent/bin/pyinfra-agent", "--version")).split()[1]
    assert version == metadata.version("pyinfra-agentd")
    assert user.pins() == pins
    succeeded(user.agent("fact", "server.Hostname"))
    unchanged(user.enrol())
    succeeded(user.unenrol())
