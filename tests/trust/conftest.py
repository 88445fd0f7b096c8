"""An agent in this process whose trust files the tests write, and what it takes to act as somebody else."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from pytest_trio.enable_trio_mode import pytest_collection_modifyitems as run_coroutines_under_trio

from pyinfra_agent._authorized import AuthorizedControllers
from pyinfra_agent._watch import follow_changes
from pyinfra_agent_protocol.keys import KeyPair, format_public
from tests.agent.helpers import House, TestController

ACCOUNT = "pyinfra-trust"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    run_coroutines_under_trio([item for item in items if Path(__file__).parent in item.path.parents])


@pytest.fixture(scope="session")
def account():
    """A user without rights, in a group more, with a home of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root can make an account and become it")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed (package util-linux)")
    make = ["useradd", "--create-home", "--shell", "/bin/sh", "--groups", "users", ACCOUNT]
    subprocess.run(["userdel", "--remove", ACCOUNT], check=False, capture_output=True)
    subprocess.run(make, check=True, capture_output=True)
    yield pwd.getpwnam(ACCOUNT)
    subprocess.run(["userdel", "--remove", ACCOUNT], check=False, capture_output=True)


@pytest.fixture
def open_directory():
    """A directory that everybody can enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


class TrustHouse(House):
    """A house that reads its trust files, and follows their changes."""

    def __init__(self, nursery, state_dir, **settings):
        self.state_dir = state_dir
        self.authorizer = AuthorizedControllers(state_dir)
        super().__init__(nursery, self.authorizer, inherited_environment=None, home=None, **settings)
        nursery.start_soon(follow_changes, self.authorizer, self.sessions)

    def write(self, *lines, name="authorized_controllers"):
        """Replace a file by a new one, as careful editors do."""
        path = self.state_dir / f"{name}.new"
        path.write_text("".join(f"{line}\n" for line in lines))
        path.chmod(0o600)
        path.rename(self.state_dir / name)

    async def let_in(self, options=""):
        """Return a controller whose line has *options*, with a link."""
        controller = TestController(KeyPair.generate())
        self.write(line_of(controller, options))
        await controller.link(self.nursery, self.connect())
        return controller


def line_of(controller, options=""):
    """Return the controller's line."""
    return f"{options} {format_public(controller.key.public, 'tester')}"


@pytest.fixture
def house(nursery, tmp_path):
    return TrustHouse(nursery, tmp_path)
