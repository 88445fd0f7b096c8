"""What pyinfra's entry point finds."""

from __future__ import annotations

import inspect
from importlib import metadata

import pytest
from pyinfra.api.exceptions import InventoryError

import pyinfra_agent_connector
from pyinfra_agent_connector._settings import DATA_KEYS
from pyinfra_agent_connector.faces import choose_face, v1
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


def test_entry_point_brings_nothing_that_other_hosts_do_not_need():
    """Pyinfra loads every connector in every run: cryptography and the client wait for a host that wants them."""
    program = """
import sys
import pyinfra.api, pyinfra.connectors.base, pyinfra.connectors.util
before = set(sys.modules)
import pyinfra_agent_connector
assert pyinfra_agent_connector.connector.handles_execution
new = set(sys.modules) - before
heavy = {name for name in new if name.startswith(("pyinfra_agent_protocol", "nacl", "msgpack"))}
assert not heavy, heavy
assert "pyinfra_agent_connector.client" not in new
"""
    run_python(program)


@pytest.mark.parametrize("version", ["1.7", "1.7.3", "1.10", "1.99.dev1"])
def test_face_for_pyinfra_1_is_a_module_that_executes(monkeypatch, version):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    face = choose_face()
    assert face.EXECUTION_CONNECTOR is True
    assert not hasattr(face, "Meta")


@pytest.mark.parametrize("version", ["2.0", "2.9.2"])
def test_face_for_pyinfra_2_is_a_module_with_meta(monkeypatch, version):
    class BaseConnectorMeta:
        """What pyinfra 2 has in its place."""

        @classmethod
        def keys(cls):
            return cls.DataKeys

    monkeypatch.setattr(metadata, "version", lambda name: version)
    monkeypatch.setattr("pyinfra.api.connectors.BaseConnectorMeta", BaseConnectorMeta, raising=False)
    face = choose_face()
    assert face.Meta.handles_execution is True
    assert face.Meta.keys_prefix == "agent"
    names = {f"agent_{name}" for name in vars(face.Meta.DataKeys) if not name.startswith("_")}
    assert names == set(DATA_KEYS)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("make_names_data", "hostname=None"),
        ("connect", "state, host"),
        ("disconnect", "state, host"),
        (
            "run_shell_command",
            "state, host, command, get_pty=False, timeout=None, stdin=None, success_exit_codes=None,"
            " print_output=False, print_input=False, return_combined_output=False, use_sudo_password=False,"
            " **command_kwargs",
        ),
        (
            "put_file",
            "state, host, filename_or_io, remote_filename, print_output=False, print_input=False, **command_kwargs",
        ),
        (
            "get_file",
            "state, host, remote_filename, filename_or_io, print_output=False, print_input=False, **command_kwargs",
        ),
        ("check_can_rsync", "host"),
        ("rsync", "state, host, src, dest, flags, print_output=False, print_input=False, **command_kwargs"),
    ],
)
def test_function_has_the_signature_that_pyinfra_documents(name, wanted):
    parameters = inspect.signature(getattr(v1, name)).parameters.values()
    assert ", ".join(str(parameter.replace(annotation=parameter.empty)) for parameter in parameters) == wanted


@pytest.mark.parametrize("version", ["0.16.2", "1.6.3", "4.0", "4.1.dev0+gabc", "five"])
def test_face_for_an_unsupported_pyinfra_refuses_its_own_hosts_only(monkeypatch, version):
    """Loading it is fine, or pyinfra would end for every host; naming a host is not."""
    monkeypatch.setattr(metadata, "version", lambda name: version)
    face = choose_face()
    assert not face.handles_execution
    with pytest.raises(InventoryError) as caught:
        face.make_names_data("web1")
    assert str(caught.value) == (
        f"the agent connector works with pyinfra 1.7 to 3, not with {version}: pip install 'pyinfra>=1.7,<4'"
    )
