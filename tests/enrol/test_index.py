"""A target that gets the agent from a package index, as it does where nobody says otherwise."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from importlib import metadata

import pytest

from tests.containers import CONTROLLER_ADDRESS
from tests.e2e.helpers import eventually
from tests.enrol.helpers import TARGET_PYTHON, changed, succeeded

DEPLOY = """
from pyinfra_agent_connector import enrol

enrol(name="Let the agent in", python={python!r}, _env={env!r})
"""


class Index:
    """A directory as PEP 503 wants it, served over HTTP in the controller's network."""

    def __init__(self, lab, directory, wheels):
        for wheel in wheels:
            project = re.sub(r"[-_.]+", "-", wheel.name.partition("-")[0]).lower()
            page = directory / "simple" / project
            page.mkdir(parents=True)
            (page / wheel.name).symlink_to(wheel.resolve())
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            link = f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>'
            (page / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self._process = lab.popen(
                *(sys.executable, "-u", "-m", "http.server", "--bind", CONTROLLER_ADDRESS),
                *("--directory", directory, "0"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        (port,) = eventually(lambda: re.findall(r" port (\d+) ", self._log.read_text()), 10, "the index")
        self.url = f"http://{CONTROLLER_ADDRESS}:{port}/simple/"

    @property
    def served(self):
        """The paths that somebody has got."""
        return re.findall(r'"GET (\S+) HTTP/1\.[01]" 200', self._log.read_text())

    def close(self):
        self._process.kill()
        self._process.wait()


@pytest.fixture
def index(machines, wheels, tmp_path):
    if subprocess.run([TARGET_PYTHON, "-c", "import ensurepip"], check=False, capture_output=True).returncode != 0:
        pytest.skip(f"{TARGET_PYTHON} has no ensurepip (package python3-venv)")
    directory = tmp_path / "index"
    directory.mkdir()
    index = Index(machines, directory, sorted(wheels.glob("*.whl")))
    yield index
    index.close()


def test_enrol_installs_from_the_index_that_the_target_is_told(user, target, index):
    """All of it comes from there: the agent in the version of the controller, and what it needs."""
    env = {
        "PIP_INDEX_URL": index.url,
        "PIP_TRUSTED_HOST": CONTROLLER_ADDRESS,  # or pip wants HTTPS
        "PIP_NO_COMPILE": "1",  # which is half of the time
        "PIP_CONFIG_FILE": os.devnull,  # beneath the container is a machine that may have settings of its own
    }
    script = user.directory / "deploy.py"
    script.write_text(DEPLOY.format(python=str(TARGET_PYTHON), env=env))

    text = changed(user.ssh("deploy.py"))

    assert f"@agent/{user.name} answers" in text
    version = metadata.version("pyinfra-agentd")
    got = [path.rpartition("/")[2] for path in index.served]
    assert any(name.startswith(f"pyinfra_agentd-{version}-") for name in got)
    assert any(name.startswith("trio-") for name in got)
    assert succeeded(target.run("/opt/pyinfra-agent/bin/pyinfra-agent", "--version")).split()[1] == version
