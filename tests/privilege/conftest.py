"""One container for all tests of this directory, with an agent of root's and an agent of an ordinary user's."""

from __future__ import annotations

import shutil

import pytest

from tests.containers import Lab, containers_or_skip
from tests.privilege.helpers import Machine

PACKAGES = {"sudo": "sudo", "doas": "opendoas", "ssh": "openssh-client", "sshd": "openssh-server", "pgrep": "procps"}


@pytest.fixture(scope="session")
def machine(tmp_path_factory):
    containers_or_skip()
    for tool, package in PACKAGES.items():
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (package {package})")
    with Lab() as lab:
        yield Machine(lab, *lab.boot("target"), tmp_path_factory.mktemp("privilege"))


@pytest.fixture(scope="session")
def roots(machine):
    """An agent that runs as root."""
    agent = machine.start_agent("root", 7963)
    yield agent
    agent.driver.close()


@pytest.fixture(scope="session")
def carols(machine):
    """An agent that runs as carol, an ordinary user."""
    agent = machine.start_agent("carol", 7964)
    yield agent
    agent.driver.close()


@pytest.fixture(params=["root", "carol"])
def agent(request):
    return request.getfixturevalue("roots" if request.param == "root" else "carols")
