"""Names of the signals that end commands."""

from __future__ import annotations

import signal
import sys

import pytest

from pyinfra_agent_connector._signals import signal_name


@pytest.mark.parametrize(
    ("number", "name"),
    [(1, "SIGHUP"), (9, "SIGKILL"), (15, "SIGTERM"), (31, "SIGSYS"), (34, "SIGRTMIN"), (64, "SIGRTMIN+30")],
)
def test_signal_name_is_the_one_of_linux(number, name):
    assert signal_name(number) == name


@pytest.mark.parametrize("number", [0, -1, 32, 33, 65, 255])
def test_signal_name_of_a_number_without_a_name_is_the_number(number):
    assert signal_name(number) == f"signal {number}"


@pytest.mark.skipif(sys.platform != "linux", reason="compares with Linux's own names")
def test_signal_names_are_those_that_python_knows():
    ours = {signal_name(number): number for number in range(1, 32)}
    aliases = {"SIGCLD": "SIGCHLD", "SIGPOLL": "SIGIO", "SIGIOT": "SIGABRT"}
    theirs = {aliases.get(name, name): int(number) for name, number in signal.Signals.__members__.items()}
    assert theirs.items() - {"SIGRTMIN": 34, "SIGRTMAX": 64}.items() <= ours.items()
