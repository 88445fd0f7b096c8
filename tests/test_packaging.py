"""What is built and installed: the files and metadata of the wheel, and what an import costs."""

from __future__ import annotations

import configparser
import email
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "pyinfra_agent_protocol": ROOT / "protocol",
    "pyinfra_agent": ROOT / "agent",
    "pyinfra_agent_connector": ROOT / "connector",
}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The directory with a wheel and an sdist of this checkout, built by the backend that pyproject.toml names."""
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory), "--sdist", "--wheel"]
    completed = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return directory


@pytest.fixture
def wheel(distributions):
    (path,) = distributions.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture
def metadata(wheel):
    return email.message_from_bytes(wheel.read(f"{dist_info(wheel)}/METADATA"))


def dist_info(wheel):
    (name,) = {name.split("/")[0] for name in wheel.namelist() if name.split("/")[0].endswith(".dist-info")}
    return name


def requirements(metadata, extra):
    """The names that `extra` asks for (the base requirements for None)."""
    lines = [line.partition(";") for line in metadata.get_all("Requires-Dist")]
    wanted = "" if extra is None else f"extra == '{extra}'"
    return {name.strip().split(">")[0] for name, _, marker in lines if marker.strip() == wanted}


def modules_after(statement):
    """The top-level names in sys.modules of a new interpreter that ran `statement`."""
    script = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return set(completed.stdout.split())


def test_wheel_holds_the_three_packages_and_nothing_else(wheel):
    top = {name.split("/")[0] for name in wheel.namelist()}

    assert top == {*PACKAGES, dist_info(wheel)}


def test_wheel_holds_every_source_file_once_and_no_other(wheel):
    sources = {
        str(path.relative_to(source_root))
        for package, source_root in PACKAGES.items()
        for path in (source_root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    # The units that `pyinfra-agent install` makes a service from.
    sources |= {f"pyinfra_agent/systemd/{path.name}" for path in (ROOT / "systemd").iterdir()}
    packed = [name for name in wheel.namelist() if not name.startswith(dist_info(wheel))]

    assert sorted(packed) == sorted(sources)


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_says_that_each_package_is_typed(wheel, package):
    assert f"{package}/py.typed" in wheel.namelist()


def test_wheel_entry_points_are_the_documented_ones(wheel):
    parser = configparser.ConfigParser(delimiters="=")
    parser.optionxform = str
    parser.read_string(wheel.read(f"{dist_info(wheel)}/entry_points.txt").decode())

    assert {group: dict(parser[group]) for group in parser.sections()} == {
        "console_scripts": {"pyinfra-agent": "pyinfra_agent.cli:main"},
        "pyinfra.connectors": {"agent": "pyinfra_agent_connector:connector"},
        "pytest11": {"pyinfra_agent_loopback": "pyinfra_agent_connector.pytest_plugin"},
        "pyinfra_agent.commands": {
            "ca": "pyinfra_agent_connector.ca_command:ca",
            "discover": "pyinfra_agent_connector.discover_command:discover",
            "exec": "pyinfra_agent_connector.exec_command:exec_command",
            "identity": "pyinfra_agent_connector.commands:identity",
            "loopback": "pyinfra_agent_connector.commands:loopback",
            "rsh": "pyinfra_agent_connector.rsh:rsh",
            "trust": "pyinfra_agent_connector.trust_command:trust",
        },
    }


def test_wheel_metadata_names_license_python_and_requirements(wheel, metadata):
    assert metadata["Name"] == "pyinfra-agentd"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    assert f"{dist_info(wheel)}/licenses/LICENSE" in wheel.namelist()
    assert set(metadata.get_all("Provides-Extra")) == {"agent", "connector"}
    assert requirements(metadata, None) == {"msgpack", "pynacl"}
    assert requirements(metadata, "agent") == {"trio", "zeroconf", "ifaddr", "dnspython"}
    assert requirements(metadata, "connector") == {"pyinfra", "gevent", "ifaddr"}


def test_wheel_requirements_are_lower_bounds(metadata):
    """An upper bound that a machine violates would break pyinfra 1.x there, for every host."""
    for requirement in metadata.get_all("Requires-Dist"):
        specifier = requirement.partition(";")[0]
        assert ">=" in specifier
        assert not set("<!~,[") & set(specifier), requirement


def test_sdist_holds_what_it_takes_to_build_and_test(distributions):
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile", "tests/conftest.py", "examples/site.py"} <= names
    assert {f"{root.name}/{package}/py.typed" for package, root in PACKAGES.items()} <= names
    assert not any(part.startswith(".") for name in names for part in name.split("/") if part != ".gitignore")


def test_import_of_protocol_brings_no_network_and_no_event_loop():
    """The modules that PyNaCl and msgpack import by themselves are theirs; what protocol adds is none of these."""
    added = modules_after("import pyinfra_agent_protocol") - modules_after("import nacl.bindings, msgpack")

    assert "pyinfra_agent_protocol" in added
    assert not added & {"asyncio", "gevent", "select", "selectors", "socket", "ssl", "subprocess", "threading", "trio"}


def test_import_of_pytest_plugin_brings_nothing_of_ours_but_itself():
    """Every pytest of the environment loads the plugin, so it imports gevent, pyinfra and the rest only when used."""
    loaded = modules_after("import pyinfra_agent_connector.pytest_plugin")

    assert not loaded & {"gevent", "msgpack", "nacl", "pyinfra", "pyinfra_agent", "pyinfra_agent_protocol", "trio"}


def test_import_of_connector_package_brings_no_pyinfra():
    """An import error in a connector breaks all of pyinfra, so the entry point's module defers what can fail."""
    assert not modules_after("import pyinfra_agent_connector") & {"gevent", "pyinfra", "trio", "zeroconf"}
