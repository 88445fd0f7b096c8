"""Ctrl-C in pyinfra's command: it ends within two seconds, and so do its commands on the targets."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.helpers import PYINFRA, eventually, finish, server_that
from tests.terminals import job

SOAK = os.environ.get("PYINFRA_AGENT_SOAK") == "1"
ENDS_WITHIN_SECONDS = 2.0
#: TERM, this long, KILL.
GRACE_SECONDS = 5.0


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def has_open(pid, directory):
    """Return whether a process has a file in *directory* open, be it one without a name."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if os.readlink(descriptor).startswith(f"{directory}/"):
                return True
    return False


@contextmanager
def started(controller, *words, **data):
    """Start pyinfra's command as the leader of a process group, as a shell does."""
    settings = {"agent_connect_timeout": 30, "agent_resume_timeout": 60} | data
    options = [word for name, value in settings.items() for word in ("--data", f"{name}={value}")]
    process = subprocess.Popen(
        [str(word) for word in (PYINFRA, "-y", *words[:1], *options, *words[1:])],
        cwd=controller.directory,
        env=controller.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def interrupt(process):
    """Send SIGINT to the process group, as the terminal does for Ctrl-C; return what came of it."""
    os.killpg(process.pid, signal.SIGINT)
    return finish(process)


def ended_well(done):
    """Assert that pyinfra ended as it does by itself at Ctrl-C: at once, and without a word too many."""
    assert done.seconds < ENDS_WITHIN_SECONDS, done
    assert done.status == 0
    assert "Exiting upon user request!" in done.text
    for word in ("Traceback", "Error", "GreenletExit", "failed with", "continue?"):
        assert word not in done.text, done.text


def sleeper(directory, *, traps=""):
    """Return a command that leaves its id in *directory* and stays."""
    return f"{traps} echo $$ > {directory}/.$$; mv {directory}/.$$ {directory}/$$; while :; do sleep 0.05; done"


def pids_in(directory, count):
    directory.mkdir(exist_ok=True)

    def all_pids():
        found = [int(entry.name) for entry in directory.glob("[0-9]*")]
        return found if len(found) == count else None

    return eventually(all_pids, 30, "the start of the commands")


@pytest.mark.parametrize("mode", [[], ["--no-wait"]] if SOAK else [[]], ids=" ".join)
def test_ctrl_c_ends_a_command_on_twenty_hosts(lab, mode):
    """One agent is asked by five names here; in the long form each host has its own."""
    controller, directory = lab.controller(), lab.directory / "pids"
    directory.mkdir()
    agents = [lab.agent(controller, listen="0.0.0.0:0", state=f"state-{number}") for number in range(20 if SOAK else 2)]
    names = [f"@agent/127.0.0.{1 + number // len(agents)}:{agents[number % len(agents)].port}" for number in range(20)]
    with started(controller, ",".join(names), *mode, "exec", "--", sleeper(directory)) as process:
        pids = pids_in(directory, 20)
        done = interrupt(process)
    ended_well(done)
    assert "--> Disconnecting from hosts..." in done.text
    eventually(lambda: not any(map(is_alive, pids)), 3, "the end of the commands")
    for agent in agents:
        assert agent.process.poll() is None
    assert "Traceback" not in "".join(agent.log.read_text() for agent in agents)
    agents[0].serves(controller)


def test_ctrl_c_on_loopback_reaches_pyinfra_alone(lab):
    """The private agent has a session of its own, so the terminal's SIGINT does not end it before the cancellation."""
    controller, directory = lab.controller(), lab.directory / "pids"
    directory.mkdir()
    seen = lab.directory / "seen"
    traps = f"trap 'echo INT >> {seen}' INT;"
    with started(controller, "@agent/loopback", "exec", "--", sleeper(directory, traps=traps)) as process:
        (pid,) = pids_in(directory, 1)
        sessions = {os.getsid(child) for child in (process.pid, pid)}
        assert len(sessions) == 2
        done = interrupt(process)
    ended_well(done)
    eventually(lambda: not is_alive(pid), 3, "the end of the command")
    assert not seen.exists()


def test_ctrl_c_sends_sigterm_first_and_sigkill_after_the_grace_period(lab):
    controller, directory = lab.controller(), lab.directory / "pids"
    directory.mkdir()
    agent = lab.agent(controller)
    told = lab.directory / "told"
    script = sleeper(directory, traps=f"trap 'touch {told}' TERM;")
    with started(controller, agent.name, "exec", "--", script) as process:
        (pid,) = pids_in(directory, 1)
        ended_well(interrupt(process))
    eventually(told.exists, 1, "the trap")
    assert is_alive(pid)
    eventually(lambda: not is_alive(pid), GRACE_SECONDS + 2, "the end of the command")


def test_ctrl_c_ends_an_operation_that_would_be_tried_again(lab):
    controller, directory = lab.controller(), lab.directory / "pids"
    directory.mkdir()
    words = ["--retry", "9", "--retry-delay", "1", "exec", "--", sleeper(directory)]
    with started(controller, "@agent/loopback", *words) as process:
        (pid,) = pids_in(directory, 1)
        ended_well(interrupt(process))
    eventually(lambda: not is_alive(pid), 3, "the end of the command")


def test_ctrl_c_ends_operations_that_run_one_after_the_other(lab):
    """With --serial it is the main greenlet that waits for the agent."""
    controller, directory = lab.controller(), lab.directory / "pids"
    directory.mkdir()
    with started(controller, "@agent/loopback", "--serial", "exec", "--", sleeper(directory)) as process:
        (pid,) = pids_in(directory, 1)
        ended_well(interrupt(process))
    eventually(lambda: not is_alive(pid), 3, "the end of the command")


def test_ctrl_c_while_facts_are_gathered_asks_nothing(lab):
    """Without -y pyinfra would ask whether to go on without hosts that failed."""
    controller, directory = lab.controller(), lab.directory / "pids"
    directory.mkdir()
    deploy = controller.directory / "deploy.py"
    deploy.write_text(
        "from pyinfra import host\nfrom pyinfra.facts.server import Command\n"
        f"host.get_fact(Command, {sleeper(directory)!r})\n"
    )
    with job(PYINFRA, "@agent/loopback", deploy, cwd=controller.directory, env=controller.environment) as terminal:
        (pid,) = pids_in(directory, 1)
        began = time.monotonic()
        terminal.type(b"\x03")
        assert terminal.status() == 0
        assert time.monotonic() - began < ENDS_WITHIN_SECONDS
    assert b"Exiting upon user request!" in terminal.shown
    assert b"continue?" not in terminal.shown
    assert b"Traceback" not in terminal.shown
    eventually(lambda: not is_alive(pid), 3, "the end of the command")


def test_ctrl_c_while_pyinfra_prompts(lab):
    """The event loop stands still then."""
    controller = lab.controller()
    words = [PYINFRA, "@agent/loopback", "server.shell", "echo x"]
    with job(*words, cwd=controller.directory, env=controller.environment) as terminal:
        terminal.shows(b"Press enter")
        time.sleep(0.1)  # from the words to the reading
        began = time.monotonic()
        terminal.type(b"\x03")
        assert terminal.status() == 0
        assert time.monotonic() - began < ENDS_WITHIN_SECONDS
        assert b"Exiting upon user request!" in terminal.shown
        assert b"Traceback" not in terminal.shown
        assert terminal.is_restored


def test_ctrl_c_while_it_connects(lab):
    controller = lab.controller()
    reached = []
    with (
        server_that(reached.append) as port,
        started(controller, f"@agent/127.0.0.1:{port},@agent/loopback", "exec", "--", "true") as process,
    ):
        eventually(lambda: reached, 15, "the connection")
        ended_well(interrupt(process))


def test_ctrl_c_while_it_resumes(lab):
    controller, directory = lab.controller(), lab.directory / "pids"
    directory.mkdir()
    agent = lab.agent(controller)
    with started(controller, agent.name, "exec", "--", sleeper(directory)) as process:
        (pid,) = pids_in(directory, 1)
        agent.process.kill()
        assert "lost" in next(line for line in process.stderr if "trying to resume" in line)
        done = interrupt(process)
        os.kill(pid, signal.SIGKILL)  # nobody is there who could
    ended_well(done)


def test_ctrl_c_while_the_agent_stands_still(lab):
    controller, directory = lab.controller(), lab.directory / "pids"
    directory.mkdir()
    agent = lab.agent(controller)
    with started(controller, agent.name, "exec", "--", sleeper(directory)) as process:
        (pid,) = pids_in(directory, 1)
        agent.process.send_signal(signal.SIGSTOP)
        done = interrupt(process)
        agent.process.send_signal(signal.SIGCONT)
    ended_well(done)
    eventually(lambda: not is_alive(pid), 3, "the end of the command")


def test_ctrl_c_in_the_middle_of_a_put_leaves_nothing(lab):
    controller = lab.controller()
    agent = lab.agent(controller)
    source, target = lab.directory / "large", lab.directory / "target"
    source.touch()
    os.truncate(source, 1024**3)
    target.mkdir()
    with started(controller, agent.name, "files.put", source, target / "file") as process:
        eventually(lambda: has_open(agent.process.pid, target), 30, "the transfer")
        done = interrupt(process)
    ended_well(done)
    eventually(lambda: not has_open(agent.process.pid, target), 3, "the end of the transfer")
    assert not any(target.iterdir())


def test_second_ctrl_c_ends_at_once_what_pyinfra_waits_for(lab):
    """After the first one pyinfra waits for its own callbacks, which nobody can end."""
    controller = lab.controller()
    deploy = controller.directory / "deploy.py"
    begun = lab.directory / "begun"
    deploy.write_text(
        "from pathlib import Path\nimport gevent\nfrom pyinfra.operations import python\n"
        f"python.call(function=lambda: (Path({str(begun)!r}).touch(), gevent.sleep(60)))\n"
    )
    with started(controller, "@agent/loopback", deploy) as process:
        eventually(begun.exists, 15, "the callback's start")
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        done = interrupt(process)
    ended_well(done)


# --- the other ends of a run ---


def test_command_lives_on_when_pyinfra_is_killed(lab):
    """A vanished controller does not kill a command."""
    controller, directory = lab.controller(), lab.directory / "pids"
    directory.mkdir()
    agent = lab.agent(controller)
    go, ended = lab.directory / "go", lab.directory / "ended"
    script = f"echo $$ > {directory}/$$; until test -e {go}; do sleep 0.02; done; echo ended > {ended}"
    with started(controller, agent.name, "exec", "--", script) as process:
        pids_in(directory, 1)
        process.kill()
        process.wait()
    go.touch()
    eventually(ended.exists, 5, "the command's own end")


def test_command_lives_on_when_its_host_is_disconnected(lab):
    """Disconnecting ends the session and not what runs in it; the command's caller gets an error."""
    controller = lab.controller()
    agent = lab.agent(controller)
    go, ended = lab.directory / "go", lab.directory / "ended"
    begun = lab.directory / "begun"
    program = f"""
import gevent, sys, os
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all, disconnect_all
state = State(Inventory(([{agent.name!r}], {{}})), Config())
connect_all(state)
host = state.inventory.get_host({agent.name!r})
def run():
    try:
        host.run_shell_command("touch {begun}; until test -e {go}; do sleep 0.02; done; echo x; echo ended > {ended}")
    except OSError as error:
        print(error)
job = gevent.spawn(run)
while not os.path.exists({str(begun)!r}):
    gevent.sleep(0.02)
disconnect_all(state)
job.join(2)
"""
    done = controller.python(program)
    assert done.status == 0, done.text
    assert "whether it has finished is not known" in done.stdout
    go.touch()
    eventually(ended.exists, 5, "the command's own end")


def test_timeout_tells_the_output_so_far_and_the_next_command_works(lab):
    """Through pyinfra's own API, with an agent whose user's commands are gone afterwards."""
    controller = lab.controller()
    agent = lab.agent(controller)
    pid = lab.directory / "pid"
    program = f"""
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all, disconnect_all
state = State(Inventory(([{agent.name!r}], {{}})), Config())
connect_all(state)
host = state.inventory.get_host({agent.name!r})
try:
    host.run_shell_command("echo $$ > {pid}; echo begun; echo trouble >&2; printf half; sleep 60", _timeout=0.5)
except TimeoutError as error:
    print(repr(str(error)), error.output.stdout_lines, error.output.stderr)
print(host.run_shell_command("echo next")[1].stdout)
disconnect_all(state)
"""
    done = controller.python(program)
    assert done.status == 0, done.text
    assert "did not end within 0.5 s and was killed" in done.stdout
    assert "['begun', 'half'] trouble\nnext\n" in done.stdout
    assert not is_alive(int(pid.read_text()))
