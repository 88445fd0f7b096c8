"""An agent at the far end of a wire; all of it needs root."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.e2e.helpers import Lab
from tests.network.wire import AGENT_ADDRESS, network


@pytest.fixture(autouse=True)
def _able_to_make_networks():
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for tool, package in (("ip", "iproute2"), ("ss", "iproute2"), ("nsenter", "util-linux"), ("sysctl", "procps")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (package {package})")
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("this kernel has no tun devices (modprobe tun)")


@pytest.fixture
def net():
    """A wire that delays a packet by 5 ms; its conditions are a test's to change."""
    with network(delay_seconds=0.005) as net:
        yield net


@pytest.fixture
def lab(tmp_path):
    lab = Lab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def controller(lab):
    return lab.controller()


@pytest.fixture
def agent(net, lab, controller):
    """An agent behind the wire, which lets the controller in."""
    agent = lab.agent(controller, listen=f"{AGENT_ADDRESS}:0", prefix=net.agent)
    agent.host = AGENT_ADDRESS
    return agent
