"""Links between network namespaces; all of it needs root."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.discovery.lab import Lab


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
