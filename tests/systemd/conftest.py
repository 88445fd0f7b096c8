"""Containers with a real systemd."""

from __future__ import annotations

import itertools

import pytest

from tests.containers import Lab, containers_or_skip
from tests.systemd.helpers import Machine

_numbers = itertools.count(1)


@pytest.fixture(scope="package")
def lab():
    containers_or_skip()
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="package")
def home(tmp_path_factory):
    """The controller's keys."""
    return tmp_path_factory.mktemp("controller") / "home"


@pytest.fixture
def machine(lab, home):
    """A fresh machine, with nothing installed."""
    [container] = lab.boot(f"m{next(_numbers)}")
    machine = Machine(lab, container, home)
    yield machine
    machine.close()
    container.kill()


@pytest.fixture
def service(machine):
    """A machine on which the agent is a service and lets the controller in."""
    machine.install()
    return machine
