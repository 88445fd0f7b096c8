"""How many descriptors the agent, its commands and the ending of commands may have."""

from __future__ import annotations

import os
import resource
import subprocess

import pytest

from pyinfra_agent import _limits
from pyinfra_agent._limits import RareLog, raise_own_limit, reserved_descriptors, start_limited

NOFILE = resource.RLIMIT_NOFILE


@pytest.fixture
def limit():
    """A login's limits, and a higher hard one; the module starts as in a new process."""
    before = resource.getrlimit(NOFILE)
    resource.setrlimit(NOFILE, (500, before[1]))
    raised = _limits._at_start
    _limits._at_start = None
    yield 500, before[1]
    _limits._at_start = raised
    resource.setrlimit(NOFILE, before)


def soft():
    return resource.getrlimit(NOFILE)[0]


def limits_of_a_command(newest):
    children = []

    def start():
        children.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        return children[0].pid

    found = resource.prlimit(start_limited(start, newest), NOFILE)
    children[0].communicate()
    return found


def test_own_limit_is_raised_but_for_a_reserve(limit):
    raise_own_limit()
    assert soft() == limit[1] - 16
    with reserved_descriptors():
        assert soft() == limit[1]
    assert soft() == limit[1] - 16


def test_second_call_changes_nothing(limit):
    raise_own_limit()
    raise_own_limit()
    assert limits_of_a_command(10) == limit


@pytest.mark.parametrize("newest", [10, 499, 3000], ids=["few in use", "nearly all", "more than a login has"])
def test_command_gets_the_limits_of_a_login_and_the_agent_keeps_its_own(limit, newest):
    raise_own_limit()
    mine = soft()
    assert limits_of_a_command(newest) == limit
    assert soft() == mine


def test_command_that_cannot_start_leaves_the_agents_limit(limit):
    raise_own_limit()
    mine = soft()
    with pytest.raises(FileNotFoundError):
        start_limited(lambda: subprocess.Popen(["/nonexistent"]).pid, 10)
    assert soft() == mine


def test_process_that_was_not_prepared_is_left_alone(limit):
    with reserved_descriptors():
        assert soft() == 500
    assert limits_of_a_command(10) == limit
    assert soft() == 500


def test_reserve_opens_what_would_be_too_many_otherwise(limit, monkeypatch):
    monkeypatch.setattr(_limits, "_at_start", (500, limit[1]))
    monkeypatch.setattr(_limits, "_usual", lambda: 3)  # more are open than that
    with reserved_descriptors():
        pass
    with pytest.raises(OSError, match="Too many open files"):
        os.close(os.open("/dev/null", os.O_RDONLY))
    with reserved_descriptors():
        os.close(os.open("/dev/null", os.O_RDONLY))
    resource.setrlimit(NOFILE, limit)


def test_rare_log_writes_one_line_for_many_events(capsys):
    rare = RareLog("out-of-something")
    for _ in range(1000):
        rare.note(error="none left")
    rare._again = 0.0
    rare.note(error="none left")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1:] for line in lines] == [
        ["out-of-something", 'error="none', 'left"', "times=1"],
        ["out-of-something", 'error="none', 'left"', "times=1000"],
    ]
