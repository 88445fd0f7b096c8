"""What pyinfra's entry point finds."""

from __future__ import annotations

from importlib import metadata

import pytest

import pyinfra_agent_connector
from pyinfra_agent_connector.faces import choose_face
from tests.connector.helpers import run_python


def test_entry_point_is_the_class_for_pyinfra_3():
    (entry,) = metadata.entry_points(group="pyinfra.connectors", name="agent")
    from pyinfra_agent_connector.faces.v3 import AgentConnector

    assert entry.load() is AgentConnector
    assert pyinfra_agent_connector.connector is AgentConnector


def test_entry_point_is_quick_the_second_time():
    """It is loaded for every name of an inventory: in less than 50 microseconds, without a look at the versions."""
    program = """
import timeit, pyinfra_agent_connector
pyinfra_agent_connector.connector
runs = timeit.repeat("pyinfra_agent_connector.connector", globals=globals(), number=1000, repeat=5)
print(min(runs) / 1000)
assert "connector" in vars(pyinfra_agent_connector)
"""
    assert float(run_python(program).stdout) < 50e-6


def test_package_loads_nothing_until_the_connector_is_asked_for():
    program = """
import sys, pyinfra_agent_connector
loaded = {"gevent", "pyinfra", "nacl", "msgpack"} & set(sys.modules)
assert not loaded, loaded
"""
    run_python(program)


def test_package_has_no_other_attributes():
    with pytest.raises(AttributeError, match="has no attribute 'conector'"):
        _ = pyinfra_agent_connector.conector


@pytest.mark.parametrize("version", ["4.0", "2.9.2", "1.7.3"])
def test_face_for_another_pyinfra_says_which_it_needs(monkeypatch, version):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    with pytest.raises(ImportError, match=rf"not with {version}: pip install 'pyinfra>=3,<4'"):
        choose_face()
