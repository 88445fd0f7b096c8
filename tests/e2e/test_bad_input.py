"""Whatever is wrong is said in one line that names it and says what to do, and the agent serves the next one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

import pytest

from tests.e2e.helpers import (
    AGENT,
    CONNECT_SECONDS,
    RESUME_SECONDS,
    eventually,
    failed_with,
    finish,
    free_port,
    run,
    server_that,
)

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


def say_ssh(connection):
    connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


def say_http(connection):
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    connection.close()


def say_nothing(connection):
    pass


def close_at_once(connection):
    connection.close()


# --- not an agent ---


def test_pyinfra_to_a_port_where_nothing_listens_says_what_to_start(lab):
    port = free_port()

    failed_with(
        lab.controller().pyinfra(f"@agent/127.0.0.1:{port}", "exec", "--", "true"),
        f"nothing listens on 127.0.0.1:{port}",
        "`pyinfra-agent serve`",
        "agent_port",
    )


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        (say_ssh, "is not a pyinfra agent"),
        (say_http, "is not a pyinfra agent"),
        (say_nothing, f"within {CONNECT_SECONDS} s"),
        (close_at_once, "the connection"),
    ],
    ids=["ssh", "http", "silent", "closes"],
)
def test_pyinfra_to_a_server_that_is_no_agent_asks_whether_the_port_is_right(behave, said, lab):
    with server_that(behave) as port:
        done = lab.controller().pyinfra(f"@agent/127.0.0.1:{port}", "exec", "--", "true")

    failed_with(done, f"127.0.0.1:{port}", said, "is agent_port right")
    assert done.seconds < CONNECT_SECONDS + 4


def test_pyinfra_to_a_host_name_that_does_not_resolve_names_it(lab):
    failed_with(
        lab.controller().pyinfra("@agent/no-such-host.invalid", "exec", "--", "true"),
        "no-such-host.invalid is no host that this machine can find",
    )


# --- names and host data ---


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("@agent/web1:99999", "a port is a number from 1 to 65535"),
        ("@agent/web1:", "a port is a number from 1 to 65535"),
        ("@agent/[::1", "write [2001:db8::1]:7963"),
        ("@agent/10.1", "four numbers from 0 to 255"),
        ("@agent/a..b", "write HOST, HOST:PORT"),
        ("@agent/root@web1", "leave out everything up to the last @"),
        ("@agent/10.0.0.1/24", "write 10.0.0.0/24 for the network, or 10.0.0.1 for one host"),
        ("@agent/b\u00fccher.example", "in its xn-- form"),
        ("@agent/10.0.0.0/33", "a network is ADDRESS/BITS"),
        ("@agent/dns:", "after dns: stands a DNS zone"),
        ("@agent/127.0.0.0/30", "found no agent: knocked on port 7963 of"),
    ],
)
def test_pyinfra_with_a_name_that_means_nothing_says_how_names_look(name, said, lab):
    failed_with(lab.controller().pyinfra(name, "exec", "--", "true"), name.removeprefix("@agent/"), said)


def test_pyinfra_splits_a_name_at_its_comma_before_the_connector_sees_it(lab):
    """Half of `@agent/a,b` is no agent at all, so what is reported is the half that is."""
    done = lab.controller().pyinfra("@agent/no-such-a.invalid,@agent/no-such-b.invalid", "exec", "--", "true")

    assert done.status != 0
    assert "Traceback" not in done.text
    assert sorted(re.findall(r"\] (no-such-.)", done.text)) == ["no-such-a", "no-such-b"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"agent_public_key": "nonsense"}, "agent_public_key"),
        ({"agent_trust": "maybe"}, "it must be strict, accept-new or ca"),
        ({"agent_port": "ssh"}, "agent_port"),
        ({"agent_port": 99999}, "99999"),
        ({"agent_connect_timeout": "soon"}, "agent_connect_timeout"),
        ({"agent_host": "a..b"}, "a..b"),
        ({"agent_host": "web 1"}, "web 1"),
        ({"agent_home": "/proc/no/such/directory"}, "/proc/no/such/directory"),
    ],
    ids=lambda value: " ".join(map(str, *value.items())) if isinstance(value, dict) else None,
)
def test_pyinfra_with_host_data_that_makes_no_sense_names_it(data, said, shared):
    agent, controller = shared

    done = controller.pyinfra(
        "@agent/web1", "exec", "--", "true", **{"agent_host": agent.host, "agent_port": agent.port, **data}
    )

    failed_with(done, said)
    agent.serves(controller)


# --- who is who ---


def test_controller_whose_key_is_not_authorised_is_told_what_to_run(shared, lab):
    agent, known = shared
    stranger = lab.controller("stranger")

    done = stranger.pyinfra(agent.name, "exec", "--", "true")

    failed_with(done, "does not let this controller in", f"pyinfra-agent authorize '{stranger.identity()}'")
    agent.serves(known)


def test_controller_that_sees_another_key_than_it_pinned_is_told_which_line_to_remove(lab):
    controller = lab.controller()
    agent = lab.agent(controller)
    assert controller.pyinfra(agent.name, "exec", "--", "true").status == 0
    agent.stop()

    replaced = lab.agent(controller, state="other-state", listen=f"127.0.0.1:{agent.port}")

    failed_with(
        controller.pyinfra(replaced.name, "exec", "--", "true"),
        f"the key of 127.0.0.1:{agent.port} has changed",
        f"remove line 1 of {controller.home / 'known_agents'}",
    )
    replaced.serves(controller)


def test_controller_with_the_key_line_of_another_agent_refuses_this_one(shared, lab):
    agent, controller = shared
    other = run(AGENT, "key", "--state-dir", lab.directory / "other").stdout.strip()

    done = controller.pyinfra(agent.name, "exec", "--", "true", agent_public_key=other)

    failed_with(done, f"127.0.0.1:{agent.port} shows key", "agent_public_key of this host")
    agent.serves(controller)


def test_controller_that_trusts_strictly_refuses_an_unknown_agent_with_the_line_to_add(lab):
    controller = lab.controller()
    agent = lab.agent(controller)
    known_agents = controller.home / "known_agents"

    done = controller.pyinfra(agent.name, "exec", "--", "true", agent_trust="strict")

    failed_with(done, "agent_trust is strict", f"is not in {known_agents}", "add this line there: ")
    assert not known_agents.exists()
    known_agents.write_text(done.said[0].partition("add this line there: ")[2] + "\n")
    assert controller.pyinfra(agent.name, "exec", "--", "true", agent_trust="strict").status == 0


def test_agent_whose_file_of_controllers_others_may_write_admits_nobody_until_that_is_mended(lab):
    controller = lab.controller()
    agent = lab.agent(controller)
    (agent.state_dir / "authorized_controllers").chmod(0o666)

    failed_with(controller.pyinfra(agent.name, "exec", "--", "true"), "does not let this controller in")

    (complaint,) = [line for line in agent.log.read_text().splitlines() if "authorized-controllers-refused" in line]
    assert str(agent.state_dir / "authorized_controllers") in complaint
    assert "chmod 600" in complaint
    (agent.state_dir / "authorized_controllers").chmod(0o600)
    agent.serves(controller)


# --- starting an agent ---


def test_agent_refuses_to_start_with_a_key_that_others_can_read(lab):
    state = lab.directory / "state"
    assert run(AGENT, "key", "--state-dir", state).status == 0
    (state / "key").chmod(0o644)

    failed_with(run(AGENT, "serve", "--listen", "127.0.0.1:0", "--state-dir", state), f"chmod 600 {state / 'key'}")


def test_agent_refuses_to_start_where_another_one_listens(lab):
    agent = lab.agent()

    second = run(AGENT, "serve", "--listen", f"127.0.0.1:{agent.port}", "--state-dir", lab.directory / "second")

    failed_with(second, f"cannot listen on 127.0.0.1:{agent.port}", "in use", "--listen")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--listen", "7963"], "is not HOST:PORT"),
        (["--listen", "::1:7963"], "is not HOST:PORT"),
        (["--listen", "127.0.0.1:65536"], "is not HOST:PORT"),
        (["--listen", "no-such-host.invalid:0"], "cannot listen on no-such-host.invalid:0"),
        (["--listen", "192.0.2.1:0"], "cannot listen on 192.0.2.1:0"),
        (["--state-dir", "/proc/no"], "/proc/no"),
        (["--state-dir", "/dev/null"], "/dev/null"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else None,
)
def test_agent_with_arguments_that_cannot_be_used_says_which(words, said, lab):
    where = [] if "--state-dir" in words else ["--state-dir", lab.directory / "state"]

    failed_with(run(AGENT, "serve", *words, *where), said, "pyinfra-agent")


# --- commands ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["exec", "--", "no-such-command"], "no-such-command: not found"),
        (["server.shell", "pwd", "_chdir=/no/such/directory"], "/no/such/directory"),
        (["server.shell", "pwd", "_shell_executable=/no/such/shell"], "/no/such/shell"),
        (["server.shell", "sleep 20", "_timeout=1"], "timed out after 1s"),
    ],
    ids=["command", "directory", "shell", "timeout"],
)
def test_command_that_cannot_be_run_says_why(words, said, shared):
    agent, controller = shared

    done = controller.pyinfra(agent.name, *words)

    failed_with(done, said)
    assert done.seconds < 12
    agent.serves(controller)


@pytest.mark.parametrize("comes_back", [False, True], ids=["gone", "started again"])
def test_agent_killed_under_a_command_leaves_an_error_that_says_the_outcome_is_unknown(comes_back, lab):
    controller = lab.controller()
    agent = lab.agent(controller)
    started = lab.directory / "pid"
    process = lab.keep(
        controller.start_pyinfra(
            agent.name, "exec", "--", f"echo $$ > {started}.new; mv {started}.new {started}; exec sleep 60"
        )
    )
    eventually(started.exists, what="the command's start")
    try:
        agent.stop(signal.SIGKILL)
        if comes_back:
            agent = lab.agent(listen=f"127.0.0.1:{agent.port}")
        done = finish(process)
    finally:
        os.kill(int(started.read_text()), signal.SIGKILL)

    assert done.status != 0
    assert "Traceback" not in done.text
    trying, failed = done.said
    assert "trying to resume for 2 s" in trying
    assert f"127.0.0.1:{agent.port}" in failed
    assert "whether it has finished is not known" in failed
    assert ("the agent no longer knows the session" if comes_back else f"within {RESUME_SECONDS} s") in failed
    assert done.seconds < RESUME_SECONDS + 5
    if not comes_back:
        agent = lab.agent(listen=f"127.0.0.1:{agent.port}")
    agent.serves(controller)


# --- files ---

TRANSFER = """
import sys
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.context import ctx_host, ctx_state

name, how, there, here = sys.argv[1:]
state = State(Inventory(([name], {})), Config())
connect_all(state)
host = state.inventory.get_host(name)
try:
    with ctx_state.use(state), ctx_host.use(host):
        host.put_file(here, there) if how == "put" else host.get_file(there, here)
except OSError as error:
    sys.exit(str(error))
finally:
    disconnect_all(state)
"""


def transfer(shared, how, there, here):
    agent, controller = shared
    return controller.python(TRANSFER, agent.name, how, there, here)


def test_put_to_a_missing_directory_names_it(shared, tmp_path):
    agent, controller = shared
    (tmp_path / "file").write_text("content")

    done = controller.pyinfra(
        agent.name, "files.put", f"src={tmp_path / 'file'}", f"dest={tmp_path}/missing/file", "create_remote_dir=False"
    )

    failed_with(done, f"{tmp_path}/missing")
    assert "see its log" not in done.text
    agent.serves(controller)


def test_get_of_a_missing_file_names_it_and_leaves_nothing(shared, tmp_path):
    agent, controller = shared

    done = controller.pyinfra(agent.name, "files.get", f"src={tmp_path}/missing", f"dest={tmp_path}/here")

    failed_with(done, f"{tmp_path}/missing")
    assert "see its log" not in done.text
    assert list(tmp_path.iterdir()) == []
    agent.serves(controller)


@pytest.mark.parametrize("how", ["put", "get"])
@pytest.mark.parametrize("size", [10, 3_000_000])
def test_transfer_of_a_directory_says_that_it_is_one(how, size, shared, tmp_path):
    agent, controller = shared
    (tmp_path / "directory").mkdir()
    (tmp_path / "here").write_bytes(b"x" * size)

    done = transfer(shared, how, tmp_path / "directory", tmp_path / "here")

    failed_with(done, f"{tmp_path}/directory", "directory")
    assert "see its log" not in done.text
    assert (tmp_path / "here").stat().st_size == size
    agent.serves(controller)


def test_put_of_a_local_file_that_is_missing_names_it(shared, tmp_path):
    agent, controller = shared

    failed_with(transfer(shared, "put", tmp_path / "there", tmp_path / "missing"), f"{tmp_path}/missing")

    assert not (tmp_path / "there").exists()
    agent.serves(controller)


def test_get_to_a_local_directory_that_is_missing_names_it(shared, tmp_path):
    agent, controller = shared
    (tmp_path / "there").write_text("content")

    failed_with(transfer(shared, "get", tmp_path / "there", tmp_path / "missing" / "here"), f"{tmp_path}/missing")

    agent.serves(controller)


@NEEDS_ROOT
def test_put_onto_a_full_disk_says_so_and_leaves_the_old_file(shared, tmp_path):
    agent, controller = shared
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("mount is not permitted here")
    try:
        (disk / "file").write_text("old")
        (tmp_path / "large").write_bytes(os.urandom(4 << 20))

        done = transfer(shared, "put", disk / "file", tmp_path / "large")

        failed_with(done, f"{disk}/file", "full")
        assert [(path.name, path.read_text()) for path in disk.iterdir()] == [("file", "old")]
        agent.serves(controller)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_pyinfra_with_one_good_and_one_bad_host_fails_only_the_bad_one(shared):
    agent, controller = shared
    port = free_port()
    started = time.monotonic()

    done = controller.pyinfra(f"@agent/127.0.0.1:{port},{agent.name}", "exec", "--", "echo", "still here")

    assert "Traceback" not in done.text
    assert f"nothing listens on 127.0.0.1:{port}" in done.text
    assert f"[{agent.name}] still here" in done.text
    assert done.status != 0
    assert time.monotonic() - started < 10
