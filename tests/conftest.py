"""Hooks for every test: where trio applies, what may share a process, and skips that CI refuses."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from pytest_trio.enable_trio_mode import pytest_collection_modifyitems as run_coroutines_under_trio

AGENT_TESTS = Path(__file__).parent / "agent"
CONNECTOR_TESTS = Path(__file__).parent / "connector"

NO_SKIP = os.environ.get("PYINFRA_AGENT_NO_SKIP") == "1"
"""Set where every tool is installed and every right is given (CI): a skipped test is then a failed one."""


def pytest_configure(config):
    """Let every signal act as it does in a terminal, whatever `nohup` or a script's `&` has set to be ignored.

    Programs under test inherit it and leave alone what they were told to ignore: tests of signals would wait for ever.
    """
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)  # after -k, -m and the like have had their choice
def pytest_collection_modifyitems(items):
    agent_items = [item for item in items if AGENT_TESTS in item.path.parents]
    if agent_items and any(CONNECTOR_TESTS in item.path.parents for item in items):
        raise pytest.UsageError(
            "agent tests run under trio, which a process patched by gevent for connector tests cannot: "
            "run tests/agent and tests/connector one after the other, as `make test` does"
        )
    # Not the ini option `trio_mode`: that would claim the coroutine tests of every directory.
    run_coroutines_under_trio(agent_items)


def refuse_skip(report):
    """Turn a skipped report into a failed one that keeps the reason; an expected failure is no skip."""
    if NO_SKIP and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"PYINFRA_AGENT_NO_SKIP=1 allows no skip, and this is one: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return refuse_skip((yield))
