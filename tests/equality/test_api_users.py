"""pyinfra as a library over private agents: however the program goes on and ends, nothing hangs or is left."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.helpers import clean_environment, eventually, finish

MANY, FEW = 20, 4
"""Each host has an agent of its own, which costs a start: so not all of these tests have many."""

END_SECONDS = 60
PATCH = "from gevent import monkey; monkey.patch_all()\n"

PROGRAM = """
import gc, io, sys, time
from pathlib import Path

from pyinfra import host as current
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.facts import get_facts
from pyinfra.api.operation import add_op
from pyinfra.api.operations import run_ops
from pyinfra.api.state import StateStage
from pyinfra.context import ctx_config, ctx_state
from pyinfra.facts.server import Command
from pyinfra.operations import files, python, server

directory, how, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def agents():
    children = Path("/proc/self/task").glob("*/children")
    return sorted({pid for path in children for pid in path.read_text().split() if is_agent(pid)})

def is_agent(pid):
    return b"_loopback" in Path("/proc", pid, "cmdline").read_bytes()

def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)

def nested(word):
    number = current.data.number
    assert current.get_fact(Command, command="echo " + word) == word
    files.put(src=io.StringIO(word), dest=str(directory / f"put{number}"))
    server.shell(commands=[f"echo {word} > {directory}/shell{number}"])
    if how == "raise in an operation" and number == 2:
        raise RuntimeError("in the middle")

def use():
    names = [(f"@agent/host{number}", {"number": number, "agent_host": ""}) for number in range(count)]
    state = State(Inventory((names, {})), Config(FAIL_PERCENT=50))
    for host in state.inventory:
        host.name = "@agent/loopback"  # each gets an agent of its own
    with ctx_state.use(state), ctx_config.use(state.config.copy()):
        connect_all(state)
        assert len(state.activated_hosts) == count
        print("agents", *agents(), flush=True)
        assert set(get_facts(state, Command, kwargs={"command": "echo fact"}).values()) == {"fact"}
        state.set_stage(StateStage.Prepare)
        add_op(state, server.shell, commands=["sleep 0.5"])
        add_op(state, python.call, function=nested, word="nested")
        add_op(state, server.shell, commands=[f"touch {directory}/after-$PPID-$$"])
        state.set_stage(StateStage.Execute)
        started = time.monotonic()
        run_ops(state)
        print("seconds", time.monotonic() - started, flush=True)
        print("lost", len(state.failed_hosts), flush=True)
        for host in state.active_hosts:
            assert host.run_shell_command("echo alive")[1].stdout == "alive"
        if how == "raise":
            raise RuntimeError("in the middle")
        if how == "disconnect":
            disconnect_all(state)
            wait_for(lambda: not agents())

use()
if how == "collect":
    for _ in range(3):
        gc.collect()
    wait_for(lambda: not agents())
    print("collected", flush=True)
if how == "killed":
    print("ready", flush=True)
    time.sleep(60)
"""


def start(how, directory, patched, count):
    """Start the program; its keys and its files are in *directory*."""
    (directory / "work").mkdir()
    return subprocess.Popen(
        [sys.executable, "-c", (PATCH if patched else "") + PROGRAM, str(directory / "work"), how, str(count)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(PYINFRA_AGENT_HOME=str(directory / "keys")),
        cwd=directory,
    )


def said(text, word):
    """Return what a line of the program's says after *word*."""
    return re.search(rf"^{word} ?(.*)$", text, re.MULTILINE)[1]


def nothing_left(pids, count):
    assert len(pids) == count
    eventually(lambda: not [pid for pid in pids if Path("/proc", pid).exists()], 10, "the end of the agents")


@pytest.mark.parametrize(
    ("how", "patched", "count"),
    [
        ("disconnect", True, MANY),
        ("disconnect", False, FEW),
        ("collect", True, FEW),
        ("collect", False, FEW),
        ("exit", False, FEW),
        ("raise", True, FEW),
        ("raise", False, FEW),
        ("raise in an operation", True, FEW),
        ("raise in an operation", False, MANY),
    ],
)
def test_library_over_private_agents_loses_no_host_and_leaves_no_process(how, patched, count, tmp_path):
    done = finish(start(how, tmp_path, patched, count), END_SECONDS)

    failed = how.startswith("raise")
    lost = 1 if how == "raise in an operation" else 0
    assert done.status == (1 if how == "raise" else 0), done.text
    assert ("in the middle" in done.stderr) == failed
    assert said(done.stdout, "lost") == str(lost), done.text
    assert count == FEW or float(said(done.stdout, "seconds")) < MANY * 0.5  # one after the other would take that long
    assert (how != "collect") or "collected" in done.stdout
    left = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert len([name for name in left if name.startswith("after-")]) == count - lost
    assert sorted(name for name in left if not name.startswith("after-")) == sorted(
        f"{kind}{number}" for kind in ("put", "shell") for number in range(count)
    )
    assert (tmp_path / "work" / "put3").read_text() == "nested"
    nothing_left(said(done.stdout, "agents").split(), count)


def test_library_that_is_killed_leaves_no_process(tmp_path):
    process = start("killed", tmp_path, True, FEW)
    lines = []
    while "ready\n" not in lines:
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()

    process.send_signal(signal.SIGKILL)
    process.communicate()

    nothing_left(said("".join(lines), "agents").split(), FEW)
