"""An agent that runs as root, a controller, and places on real file systems."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack

import pytest

from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_connector.client import AgentClient
from tests.e2e.helpers import Lab
from tests.files.helpers import image, mounted


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """An agent, and a controller that it lets in."""
    lab = Lab(tmp_path_factory.mktemp("shared"))
    controller = lab.controller()
    try:
        yield lab.agent(controller), controller
    finally:
        lab.close()


@pytest.fixture
def agent(shared):
    return shared[0]


@pytest.fixture
def controller(shared):
    return shared[1]


@pytest.fixture(scope="session")
def client(shared):
    """A client that is connected to the agent."""
    agent, controller = shared
    client = AgentClient(*agent.address, identity=load_or_create(controller.home), check_key=lambda *_: None)
    client.connect()
    yield client
    client.close()


@pytest.fixture
def needs_root():
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts, owners and other users")


@pytest.fixture(params=["disk", "ext4", "btrfs", "tmpfs", "overlay"])
def place(request, needs_root, tmp_path):
    """An empty directory on the test's own disk, or on a file system made for it."""
    path = tmp_path / "place"
    path.mkdir()
    with ExitStack() as stack:
        if request.param in ("ext4", "btrfs"):
            file = stack.enter_context(image(request.param))
            stack.enter_context(mounted("-o", "loop", str(file), str(path)))
            subprocess.run(["rm", "-rf", path / "lost+found"], check=True)
        elif request.param == "tmpfs":
            stack.enter_context(mounted("-t", "tmpfs", "none", str(path)))
        elif request.param == "overlay":
            # On a tmpfs: the disk of a container is an overlay itself, which takes no other one upon it.
            below = tmp_path / "below"
            below.mkdir()
            stack.enter_context(mounted("-t", "tmpfs", "none", str(below)))
            for name in ("lower", "upper", "work"):
                (below / name).mkdir()
            options = f"lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work"
            stack.enter_context(mounted("-t", "overlay", "-o", options, "none", str(path)))
        yield path


@pytest.fixture
def small(needs_root, tmp_path):
    """An empty directory on a tmpfs of 1 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=1m", "none", str(path)):
        yield path
