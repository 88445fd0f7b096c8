"""The fixture for tests of deploys."""

from __future__ import annotations

import subprocess
import sys

from tests.connector.helpers import run_python


def test_plugin_imports_nothing_heavy():
    """Every pytest of the environment loads it."""
    program = """
import sys
import pytest
before = set(sys.modules)
import pyinfra_agent_connector.pytest_plugin
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert new == {"pyinfra_agent_connector"}, new
"""
    run_python(program)


DEPLOY_TEST = """
from io import StringIO
from pyinfra.api.operation import add_op
from pyinfra.api.operations import run_ops
from pyinfra.facts.files import File
from pyinfra.operations import files


def test_deploy(loopback_agent, tmp_path):
    path = str(tmp_path / "motd")
    add_op(loopback_agent.state, files.put, src=StringIO("hello"), dest=path)
    run_ops(loopback_agent.state)
    assert loopback_agent.host.get_fact(File, path=path)["size"] == 5
    assert loopback_agent.name == "@agent/loopback"


def test_host_is_the_current_one(loopback_agent):
    from pyinfra import host
    assert host.name == loopback_agent.name


def test_without_it():
    pass
"""


def test_plugin_gives_a_connected_host(tmp_path):
    """A test of somebody else's finds the fixture without a word of set-up."""
    (tmp_path / "test_site.py").write_text(DEPLOY_TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
