"""A process that is started while somebody presses Ctrl-C."""

from __future__ import annotations

import subprocess
import sys

import gevent
import pytest

from pyinfra_agent_connector._processes import start_process
from tests.connector.helpers import run_python

# The hooks run in the child between fork and exec, where a terminal's SIGINT may reach it as well.
INTERRUPTED = """
import os, signal, sys, gevent
from gevent import monkey; monkey.patch_all()
from pyinfra_agent_connector._processes import start_process

def handle(number, frame):
    print("handled", os.getpid() == parent, flush=True)
    if os.getpid() != parent:
        sys.exit(0)

parent = os.getpid()
signal.signal(signal.SIGINT, handle)
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))
process = start_process([sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT).__name__, \
signal.pthread_sigmask(signal.SIG_BLOCK, []))"])
print("status", process.wait(), flush=True)
os.kill(parent, signal.SIGINT)
"""


def test_ctrl_c_between_fork_and_exec_is_dropped_in_the_child():
    done = run_python(INTERRUPTED)
    assert done.stdout.splitlines() == ["default_int_handler set()", "status 0", "handled True"]
    assert done.stderr == ""


def test_ctrl_c_reaches_the_program_once_it_runs():
    argv = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGINT)"]
    process = start_process(argv, stderr=subprocess.DEVNULL)
    assert process.wait() != 0


def test_program_that_is_not_there_is_an_oserror_and_the_mask_is_restored():
    with pytest.raises(FileNotFoundError):
        start_process(["/nonexistent"])
    process = start_process(["true"])
    with gevent.Timeout(5):
        assert process.wait() == 0
