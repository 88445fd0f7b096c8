"""pyinfra as a library: twenty hosts in a process that gevent has patched or not, and its end, however it comes."""

from __future__ import annotations

import sys
import time

import pytest

from tests.e2e.helpers import Lab, eventually, run

HOSTS = 20
END_SECONDS = 3
PATCH = "from gevent import monkey; monkey.patch_all()\n"

SCRIPT = f"""
import sys, time
from io import StringIO

from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.operation import add_op
from pyinfra.api.operations import run_ops
from pyinfra.context import ctx_state
from pyinfra.operations import server

port, directory, how = sys.argv[1:]
hosts = [
    (f"@agent/host{{number}}", {{"agent_host": f"127.0.0.{{number}}", "agent_port": int(port)}})
    for number in range(2, {HOSTS} + 2)
]
state = State(Inventory((hosts, {{}})), Config())
with ctx_state.use(state):
    connect_all(state)
    assert len(state.activated_hosts) == len(hosts), state.activated_hosts
    add_op(state, server.shell, commands=["sleep 0.5"])
    started = time.monotonic()
    run_ops(state)
    print("seconds", time.monotonic() - started)
    for host in state.inventory:
        done, output = host.run_shell_command("echo " + host.name)
        assert (done, output.stdout) == (True, host.name), output
        assert host.put_file(StringIO("content"), directory + "/" + host.data.agent_host)
    print("ready", time.time(), flush=True)
    if how == "disconnect":
        disconnect_all(state)
    elif how == "raise":
        raise RuntimeError("in the middle")
    elif how == "raise while a command runs":
        import gevent
        gevent.spawn(next(iter(state.inventory)).run_shell_command, "sleep 60")
        gevent.sleep(0.3)
        raise RuntimeError("in the middle")
    elif how == "interrupt":
        import gevent
        gevent.spawn(next(iter(state.inventory)).run_shell_command, "sleep 60")
        gevent.sleep(0.3)
        raise KeyboardInterrupt
"""


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory):
    """An agent on every address of this machine, so that twenty hosts can be reached."""
    lab = Lab(tmp_path_factory.mktemp("everywhere"))
    controller = lab.controller()
    try:
        yield lab.agent(controller, listen="0.0.0.0:0"), controller
    finally:
        lab.close()


@pytest.mark.parametrize(
    ("how", "status", "patched"),
    [
        ("disconnect", 0, True),
        ("disconnect", 0, False),
        ("no disconnect", 0, True),
        ("raise", 1, False),
        ("raise while a command runs", 1, True),
        ("raise while a command runs", 1, False),
        ("interrupt", -2, True),
    ],
)
def test_library_with_twenty_hosts_runs_them_at_once_and_the_process_ends(how, status, patched, everywhere, tmp_path):
    if sys.platform != "linux":
        pytest.skip("127.0.0.2 and on are addresses of this machine on Linux only")
    agent, controller = everywhere

    done = controller.python((PATCH if patched else "") + SCRIPT, agent.port, tmp_path, how)
    ended = time.time()

    assert done.status == status, done.text
    facts = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("seconds ", "ready ")))
    assert ended - float(facts["ready"]) < END_SECONDS
    assert float(facts["seconds"]) < HOSTS * 0.5 / 2
    if status == 0:
        assert "Traceback" not in done.text
    elif how != "interrupt":
        assert "\nRuntimeError: in the middle\n" in done.stderr
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["content"] * HOSTS
    assert len((controller.home / "known_agents").read_text().splitlines()) == HOSTS
    agent.serves(controller)
    # Nobody answers for a session any more; what the agent had open for it is gone.
    eventually(lambda: agent.descriptors < 40, 5, "the end of the connections")


def test_library_with_one_host_that_is_down_runs_the_others(everywhere, tmp_path):
    agent, controller = everywhere
    script = f"""
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.context import ctx_state

up = ("@agent/up", {{"agent_host": "127.0.0.2", "agent_port": {agent.port}}})
down = ("@agent/down", {{"agent_host": "127.0.0.2", "agent_port": 1}})
state = State(Inventory(([up, down], {{}})), Config(FAIL_PERCENT=60))
with ctx_state.use(state):
    connect_all(state)
    assert [host.name for host in state.active_hosts] == ["@agent/up"], state.active_hosts
    disconnect_all(state)
    disconnect_all(state)
    connect_all(state)
    done, output = state.inventory.get_host("@agent/up").run_shell_command("echo again")
    assert (done, output.stdout) == (True, "again")
"""

    done = controller.python(script)

    assert done.status == 0, done.text
    assert "Traceback" not in done.text
    assert "nothing listens on 127.0.0.2:1" in done.text


def test_import_of_pyinfra_needs_nothing_of_the_agent():
    """The agent's side, and gevent's socket, are only loaded by who uses them."""
    done = run(
        sys.executable,
        "-c",
        "import sys, pyinfra.api; from pyinfra.api import Inventory; Inventory((['@local'], {}));"
        " print([name for name in ('trio', 'pyinfra_agent', 'zeroconf') if name in sys.modules])",
    )

    assert (done.status, done.stdout) == (0, "[]\n"), done.text
