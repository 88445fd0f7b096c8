"""Links between network namespaces; all of it needs root."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.discovery.lab import Lab
from tests.discovery.serving import Serving


@pytest.fixture(scope="package", autouse=True)
def _able_to_make_networks():
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for tool, package in (("ip", "iproute2"), ("nsenter", "util-linux"), ("nft", "nftables"), ("sysctl", "procps")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (package {package})")


@pytest.fixture
def lab():
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture
def serving(tmp_path):
    """Starts real agents, and ends them."""
    agents = []

    def start(*arguments, **options):
        agents.append(Serving(arguments[0], tmp_path, *arguments[1:], **options))
        return agents[-1]

    yield start
    for agent in agents:
        agent.kill()
