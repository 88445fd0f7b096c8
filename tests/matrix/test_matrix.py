"""The short form of the matrix: the last pyinfra of each generation that has a face of its own, on this Python."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.matrix.run import build_wheel, make_and_run

VERSIONS = ("1.7.3", "2.9.2")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Make and run all cells at once: each waits for the network first, and for processes then."""
    directory = tmp_path_factory.mktemp("matrix")
    wheel = build_wheel(directory)
    with ThreadPoolExecutor() as pool:
        cells = [pool.submit(make_and_run, directory / version, sys.executable, version, wheel) for version in VERSIONS]
    return {version: cell.result() for version, cell in zip(VERSIONS, cells, strict=True)}


@pytest.mark.parametrize("version", VERSIONS)
def test_cell_holds(version, results):
    """Everything that `cell.py` checks holds with this pyinfra, in an environment of its own."""
    result = results[version]
    if "No matching distribution" in result.trouble:  # what pip says without a network
        pytest.skip(f"pyinfra {version} {result.trouble}")
    assert not result.trouble
    assert result.version == version
    assert len(result.checks) >= 20
    assert not result.failures, str(result)
