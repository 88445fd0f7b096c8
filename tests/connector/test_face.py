"""pyinfra's view of the connector."""

from __future__ import annotations

import contextlib
import glob
import inspect
import io
import os
import pwd
import shutil
import subprocess
import time
import typing

import gevent
import pytest
from pyinfra import logger
from pyinfra.api import Inventory, MaskString, QuoteString, StringCommand
from pyinfra.api import output as pyinfra_output
from pyinfra.api.exceptions import ConnectError, InventoryError
from pyinfra.connectors import base
from pyinfra.connectors.base import BaseConnector, host_to_connector_data
from pyinfra.connectors.util import CommandOutput

from pyinfra_agent_connector import _host
from pyinfra_agent_connector._prepared import exit_status
from pyinfra_agent_connector.faces.v3 import AgentConnector, AgentData
from pyinfra_agent_protocol import DEFAULT_PORT, ExecResult
from pyinfra_agent_protocol.keys import KeyPair, format_public
from tests.connector.helpers import FakeAgent, free_port, serve_quietly, state_of, until

OTHER = "nobody"


def host_at(name: str = "@agent/loopback", **data):
    return state_of((name, data)).inventory.get_host(name)


@pytest.fixture(scope="module")
def host():
    """A host connected to a private agent, for all tests that do not break it."""
    host = host_at()
    host.connect(raise_exceptions=True)
    yield host
    host.disconnect()


@pytest.fixture
def printed():
    """Lines that went to pyinfra's output, which its command line sets up."""
    lines = []

    def echo(message, *, err):
        assert err
        lines.append(message)

    before = pyinfra_output._echo
    pyinfra_output.set_echo(echo)
    yield lines
    pyinfra_output.set_echo(before)


def sh(host, script, **arguments):
    return host.run_shell_command(script if isinstance(script, StringCommand) else StringCommand(script), **arguments)


# --- the shape ---


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, member in vars(BaseConnector).items()
        if inspect.isfunction(member) and not name.startswith("__") and "rsync" not in name
    ]
    + ["make_names_data"],
)
def test_face_has_pyinfras_signatures(name):
    """The same parameters, of the same kinds, in the same order; a default may be added."""
    theirs = inspect.signature(getattr(BaseConnector, name)).parameters
    ours = inspect.signature(getattr(AgentConnector, name)).parameters
    assert list(ours) == list(theirs)
    for parameter in theirs.values():
        assert ours[parameter.name].kind is parameter.kind
        if parameter.default is not parameter.empty:
            assert ours[parameter.name].default == parameter.default


def test_face_describes_every_key_of_its_data_with_a_plain_type():
    """The documentation generator of pyinfra and its type check both want that."""
    hints = typing.get_type_hints(AgentData)
    assert list(hints) == list(AgentConnector.data_meta)
    assert set(hints.values()) <= {str, int}
    assert all(isinstance(meta, base.DataMeta) and meta.description for meta in AgentConnector.data_meta.values())


def test_face_fills_in_what_host_data_leaves_out():
    data = host_to_connector_data(AgentData, AgentConnector.data_meta, {})
    assert data["agent_port"] == DEFAULT_PORT
    assert (data["agent_connect_timeout"], data["agent_resume_timeout"]) == (10, 60)
    assert data["agent_host"] is data["agent_public_key"] is data["agent_home"] is data["agent_trust"] is None
    assert AgentConnector.handles_execution


@pytest.mark.parametrize(
    ("name", "host", "data"),
    [
        ("web1", "@agent/web1", {"agent_host": "web1"}),
        ("WEB1:99", "@agent/WEB1:99", {"agent_host": "web1", "agent_port": 99}),
        ("[2001:db8::1]", "@agent/[2001:db8::1]", {"agent_host": "2001:db8::1"}),
        ("[2001:db8::1]:99", "@agent/[2001:db8::1]:99", {"agent_host": "2001:db8::1", "agent_port": 99}),
        ("known:7963", "@agent/known:7963", {"agent_host": "known", "agent_port": 7963}),
        ("loopback", "@agent/loopback", {}),
    ],
)
def test_face_names_one_host(name, host, data):
    assert list(AgentConnector.make_names_data(name)) == [(host, data, ["agent"])]


@pytest.mark.parametrize(
    ("name", "group_data", "port"),
    [("web1", {"agent_port": 7970}, 7970), ("web1:7963", {"agent_port": 7970}, 7963), ("web1", {}, DEFAULT_PORT)],
)
def test_face_takes_the_port_of_group_data_where_the_name_says_none(name, group_data, port):
    inventory = Inventory(([f"@agent/{name}"], {}), web=([f"@agent/{name}"], group_data))
    data = host_to_connector_data(AgentData, AgentConnector.data_meta, inventory.get_host(f"@agent/{name}").data)
    assert (data["agent_host"], data["agent_port"]) == ("web1", port)


def test_face_gives_fresh_data_each_time():
    """What pyinfra gets, it changes."""
    (_, data, groups), (_, others, other_groups) = (next(iter(AgentConnector.make_names_data("web1"))) for _ in "12")
    assert data is not others
    assert groups is not other_groups


@pytest.mark.parametrize("name", ["known", "10.0.0.0/8", "10.0.0.1/24", "dns:", "a b", "web1:0", "a,b"])
def test_face_says_what_it_does_not_understand(name):
    with pytest.raises(InventoryError) as caught:
        list(AgentConnector.make_names_data(name))
    assert len(str(caught.value).splitlines()) == 1


# --- connecting ---


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "nothing listens"),
        ({"agent_host": "not a name"}, "is not understood"),
        ({"agent_port": 0}, "a port is a number"),
        ({"agent_public_key": "nonsense"}, "is no key line"),
        ({"agent_host": "no-such-host.invalid"}, "no host that this machine can find"),
    ],
)
def test_connect_raises_nothing_but_connect_error(data, words):
    host = host_at("@agent/web1", **{"agent_host": "127.0.0.1", "agent_port": free_port(), **data})
    with pytest.raises(ConnectError, match=words) as caught:
        host.connector.connect()
    assert len(str(caught.value).splitlines()) == 1
    host.connector.disconnect()


def test_connect_with_an_identity_that_others_can_read_is_a_connect_error(tmp_path):
    (tmp_path / "identity").write_text("x")
    (tmp_path / "identity").chmod(0o644)
    host = host_at("@agent/web1", agent_host="127.0.0.1", agent_port=free_port(), agent_home=str(tmp_path))
    with pytest.raises(ConnectError, match="chmod 600"):
        host.connector.connect()


def test_connect_pins_and_then_refuses_another_key(agent_home):
    with FakeAgent(serve_quietly) as first:
        host = host_at("@agent/web1", agent_host="127.0.0.1", agent_port=first.port)
        host.connector.connect()
        host.connector._agent._client._connection.drop()
    assert format_public(first.key.public) in (agent_home / "known_agents").read_text()
    with FakeAgent(serve_quietly) as second:
        (agent_home / "known_agents").write_text(f"127.0.0.1:{second.port} {format_public(first.key.public)}\n")
        host = host_at("@agent/web1", agent_host="127.0.0.1", agent_port=second.port)
        with pytest.raises(ConnectError, match="has changed"):
            host.connector.connect()
        assert second.conversations == []


def test_connect_takes_the_key_of_the_host_data():
    key = KeyPair.generate()
    for agent_key, right in ((key, True), (KeyPair.generate(), False)):
        with FakeAgent(serve_quietly, key=agent_key) as agent:
            line = format_public(key.public)
            host = host_at("@agent/web1", agent_host="127.0.0.1", agent_port=agent.port, agent_public_key=line)
            if right:
                host.connector.connect()
                host.connector._agent._client._connection.drop()
            else:
                with pytest.raises(ConnectError, match="agent_public_key"):
                    host.connector.connect()


def test_connect_twice_and_after_disconnect():
    """Each connect works, and leaves one agent."""
    host = host_at()
    host.connector.connect()
    first = host.connector._agent._loopback
    host.connector.connect()
    assert first._process.poll() is not None
    assert sh(host, "true")[0]
    host.connector.disconnect()
    assert host.connector._agent._loopback is None
    host.connector.connect()
    assert sh(host, "true")[0]
    host.connector.disconnect()
    host.connector.disconnect()


def test_command_without_connect_is_an_os_error():
    with pytest.raises(OSError, match="is not connected"):
        sh(host_at(), "true")


# --- commands ---


def test_command_returns_success_and_output(host):
    ok, output = sh(host, "echo out; echo err >&2")
    assert ok is True
    assert isinstance(output, CommandOutput)
    assert (output.stdout, output.stderr) == ("out", "err")
    assert sorted(line.line for line in output) == ["err", "out"]
    assert sh(host, "exit 3")[0] is False


def test_command_success_is_what_the_caller_says(host):
    assert sh(host, "exit 3", _success_exit_codes=[0, 3])[0] is True
    assert sh(host, "exit 0", _success_exit_codes=[3])[0] is False


def test_command_has_environment_directory_shell_and_input(host, tmp_path):
    script = 'echo "$A|$(pwd)|$0"; cat'
    ok, output = sh(
        host,
        script,
        _env={"A": "it's é"},
        _chdir=str(tmp_path),
        _shell_executable="bash",
        _stdin=["one", "two"],
    )
    assert ok
    assert output.stdout_lines == [f"it's é|{tmp_path}|bash", "one", "two"]


def test_command_in_a_terminal(host):
    assert sh(host, "test -t 1 && echo yes", _get_pty=True)[1].stdout.strip() == "yes"
    assert sh(host, "test -t 1 || echo no")[1].stdout == "no"


def test_command_whose_time_is_over_is_a_timeout_error_with_its_output(host):
    with pytest.raises(TimeoutError, match=r"did not end within 0\.3 s") as caught:
        sh(host, "echo begun; sleep 30", _timeout=0.3)
    assert caught.value.output.stdout == "begun"


def test_command_in_an_error_is_one_line(host):
    """A script of several lines is not repeated."""
    with pytest.raises(TimeoutError) as caught:
        sh(host, "echo begun\nsleep 30", _timeout=0.1)
    assert str(caught.value) == "the command did not end within 0.1 s and was killed"


def test_command_output_is_printed_while_it_runs(host, printed):
    """The first line is there before the command ends, with the host in front of it."""
    job = gevent.spawn(sh, host, "echo first; sleep 0.4; echo second >&2", print_output=True, print_input=True)
    until(lambda: len(printed) > 1)
    assert not job.ready()
    assert job.get(timeout=5)[0]
    assert [line.split("] ", 1)[1] for line in printed] == [
        ">>> sh -c 'echo first; sleep 0.4; echo second >&2'",
        "first",
        "second",
    ]
    assert all(line.startswith("[@agent/loopback]") for line in printed)


def test_command_that_hides_something_is_printed_masked(host, printed):
    command = StringCommand("echo", QuoteString(MaskString("s3cret")))
    ok, output = sh(host, command, print_input=True)
    assert ok
    assert output.stdout == "s3cret"
    assert len(printed) == 1
    assert "s3cret" not in printed[0]


@pytest.mark.parametrize("text", ["é€\U0001f600", 'it\'s "quoted" $HOME `x`', "-n", "a\tb", "\udcff"])
def test_command_takes_any_text(host, text):
    assert sh(host, StringCommand("printf", "%s", QuoteString(text)))[1].stdout == text


def test_command_as_another_user_by_sudo(host):
    if os.geteuid() or subprocess.run(["sudo", "-n", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs root and sudo")
    assert sh(host, "id -un", _sudo=True)[1].stdout == "root"
    assert sh(host, "id -un", _sudo=True, _sudo_user=OTHER)[1].stdout == OTHER
    ok, output = sh(host, 'echo "$A $(pwd)"', _sudo=True, _sudo_user=OTHER, _env={"A": "x y"}, _chdir="/usr")
    assert (ok, output.stdout) == (True, "x y /usr")


def test_command_as_another_user_by_su(host):
    if os.geteuid():
        pytest.skip("needs root")
    assert sh(host, "id -un", _su_user=OTHER, _su_shell="/bin/sh")[1].stdout == OTHER


def test_exit_status_is_what_a_shell_reports():
    assert exit_status(ExecResult(7)) == 7
    assert exit_status(ExecResult(None, 9)) == 137


def test_connection_that_is_lost_is_an_os_error():
    """A host whose agent dies fails its command with an OSError, and disconnects quietly."""
    host = host_at(agent_resume_timeout=1)
    host.connect(raise_exceptions=True)
    job = gevent.spawn(sh, host, "sleep 30")
    gevent.sleep(0.1)
    host.connector._agent._loopback._process.kill()
    with pytest.raises(OSError, match="whether it has finished is not known"):
        job.get(timeout=5)
    began = time.monotonic()
    host.disconnect()
    assert time.monotonic() - began < 1


def test_command_that_ends_the_connection_is_minus_one_at_once():
    """What a reboot expects: no attempt to resume, and a connection anew afterwards."""
    host = host_at(agent_resume_timeout=30)
    host.connect(raise_exceptions=True)
    agent = host.connector._agent._loopback
    began = time.monotonic()
    job = gevent.spawn(sh, host, "echo going; sleep 30", _success_exit_codes=[0, -1])
    gevent.sleep(0.2)
    agent._process.kill()
    ok, output = job.get(timeout=5)
    assert (ok, output.stdout) == (True, "going")
    assert time.monotonic() - began < 3
    host.disconnect()
    host.connect(raise_exceptions=True)
    assert sh(host, "echo back")[1].stdout == "back"
    host.disconnect()


def test_command_that_was_never_sent_is_no_reboot():
    """A connection that was lost before is an error, or pyinfra would wait for a machine that stays up."""
    host = host_at()
    host.connect(raise_exceptions=True)
    host.connector._agent._loopback._process.kill()
    until(lambda: not host.connector._agent._client.is_connected)
    with pytest.raises(OSError, match="nothing listens"):
        sh(host, "reboot", _success_exit_codes=[0, -1])
    host.disconnect()


def test_user_is_told_of_loss_and_return(host, monkeypatch):
    lines = []
    monkeypatch.setattr(logger, "warning", lines.append)
    job = gevent.spawn(sh, host, "sleep 0.3; echo done")
    gevent.sleep(0.1)
    host.connector._agent._client._connection._link._sock._sock.shutdown(2)
    assert job.get(timeout=5)[1].stdout == "done"
    assert len(lines) == 2
    assert all("@agent/loopback" in line for line in lines)


# --- leaving ---


def test_disconnect_removes_pyinfras_askpass_file(tmp_path):
    """Left to pyinfra, it would be removed by a command after the disconnect."""
    host = host_at()
    host.connect(raise_exceptions=True)
    askpass = tmp_path / "askpass"
    askpass.touch()
    host.connector_data["sudo_askpass_path__/tmp"] = str(askpass)
    host.disconnect()
    assert not askpass.exists()
    assert not host.connected


def test_disconnect_on_a_dead_link_returns_at_once(tmp_path):
    with FakeAgent(serve_quietly) as agent:
        host = host_at("@agent/web1", agent_host="127.0.0.1", agent_port=agent.port)
        host.connect(raise_exceptions=True)
        host.connector_data["sudo_askpass_path__/tmp"] = "/tmp/askpass"
        agent.conversations[0].sock.close()
        host.connector._agent._client._connection._link._sock._sock.shutdown(2)
        until(lambda: not host.connector._agent._client.is_connected)
        began = time.monotonic()
        host.disconnect()
        assert time.monotonic() - began < 0.5


def test_disconnect_from_an_agent_that_hangs_is_bounded(monkeypatch):
    """An agent that answers nothing does not keep pyinfra from ending."""
    monkeypatch.setattr(_host, "_REMOVAL_SECONDS", 0.1)
    with FakeAgent(serve_quietly) as agent:
        host = host_at("@agent/web1", agent_host="127.0.0.1", agent_port=agent.port)
        host.connect(raise_exceptions=True)
        host.connector_data["sudo_askpass_path__/tmp"] = "/tmp/askpass"
        began = time.monotonic()
        host.disconnect()
        assert time.monotonic() - began < 2


# --- files ---


@pytest.mark.parametrize("name", ["plain", "it's é", "-n", "a\nb", "\udcff"])
def test_put_and_get_of_names(host, tmp_path, name):
    local, remote, back = (os.path.join(tmp_path, part + name) for part in ("l", "r", "b"))
    content = os.urandom(100_000)
    with open(local, "wb") as file:
        file.write(content)
    assert host.put_file(local, remote) is True
    assert host.get_file(remote, back) is True
    with open(back, "rb") as file:
        assert file.read() == content


def test_large_files_that_were_replaced_on_both_sides_are_let_go_of(host, tmp_path):
    local, remote = tmp_path / "local", tmp_path / "remote"
    for path in (local, remote):
        path.write_bytes(bytes(20 << 20))
    olds = {os.stat(path).st_ino for path in (local, remote)}
    assert host.put_file(io.BytesIO(b"new"), str(remote))
    assert host.get_file(str(remote), str(local))
    assert local.read_text() == "new"

    def held():
        found = set()
        for descriptor in glob.glob("/proc/[0-9]*/fd/*"):
            with contextlib.suppress(OSError):  # it is gone
                status = os.stat(descriptor)
                found |= {status.st_ino} if status.st_dev == os.stat(tmp_path).st_dev else set()
        return found & olds

    until(lambda: not held())


def test_large_file_is_replaced_though_no_thread_can_be_started(host, tmp_path, monkeypatch):
    (tmp_path / "remote").write_bytes(b"new")
    (tmp_path / "local").write_bytes(bytes(20 << 20))

    def start_new_thread(function, arguments):
        raise RuntimeError("can't start new thread")

    def get_original(module, name):
        return start_new_thread if name == "start_new_thread" else getattr(os, name)

    monkeypatch.setattr(_host, "get_original", get_original)
    before = len(os.listdir("/proc/self/fd"))
    assert host.get_file(str(tmp_path / "remote"), str(tmp_path / "local"))
    assert (tmp_path / "local").read_bytes() == b"new"
    assert len(os.listdir("/proc/self/fd")) == before


def test_put_and_get_of_objects(host, tmp_path):
    """Bytes and text, in memory and in files."""
    remote = str(tmp_path / "remote")
    with open(tmp_path / "text", "w+", encoding="utf-8") as text_file:
        text_file.write("é\n")
        for source in (io.BytesIO("é\n".encode()), io.StringIO("é\n"), text_file):
            assert host.put_file(source, remote)
            assert (tmp_path / "remote").read_text("utf-8") == "é\n"
        text_file.truncate(0)
        for sink, expected in ((io.BytesIO(), "é\n".encode()), (io.StringIO(), "é\n"), (text_file, "é\n")):
            assert host.get_file(remote, sink)
            sink.seek(0)
            assert sink.read() == expected


def test_put_and_get_say_what_they_did(host, tmp_path, printed):
    remote = str(tmp_path / "remote")
    host.put_file(io.BytesIO(b"x"), remote, print_output=True)
    host.get_file(remote, io.BytesIO(), print_output=True)
    assert [line.split("] ", 1)[1] for line in printed] == [f"file uploaded: {remote}", f"file downloaded: {remote}"]


def test_get_that_fails_is_an_os_error_and_leaves_the_local_file(host, tmp_path):
    local = tmp_path / "local"
    local.write_text("old")
    for remote in (tmp_path / "missing", tmp_path):
        with pytest.raises(OSError, match=str(remote)):
            host.get_file(str(remote), str(local))
    assert local.read_text() == "old"
    with pytest.raises(OSError, match="missing"):
        host.put_file(str(tmp_path / "missing"), str(tmp_path / "remote"))
    assert os.listdir(tmp_path) == ["local"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("sudo"), reason="needs root and sudo")
def test_put_and_get_by_sudo(host, tmp_path):
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        user = pwd.getpwnam(OTHER)
        os.chown(directory, user.pw_uid, user.pw_gid)
        remote = os.path.join(directory, "file")
        arguments = {"_sudo": True, "_sudo_user": OTHER, "_use_sudo_login": True}
        assert host.put_file(io.BytesIO(b"content"), remote, **arguments)
        assert os.stat(remote).st_uid == user.pw_uid
        got = io.BytesIO()
        assert host.get_file(remote, got, **arguments)
        assert got.getvalue() == b"content"


STUB_SUDO = """#!/bin/sh
# sudo that wants the password "right", by -A only, and stays who it is.
ask=
while :; do
    case $1 in
        -A) ask=yes; shift ;;
        -u) shift 2 ;;
        -*) shift ;;
        *) break ;;
    esac
done
if [ -z "$ask" ] || [ "$("$SUDO_ASKPASS")" != right ]; then echo "sudo: a password is required" >&2; exit 1; fi
exec "$@"
"""


@pytest.fixture
def asking_host(tmp_path, monkeypatch):
    """A host whose sudo wants a password, and how often it was asked for."""
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin" / "sudo"
    stub.write_text(STUB_SUDO)
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    asked = []
    monkeypatch.setattr("pyinfra.connectors.util.getpass", lambda prompt: asked.append(prompt) or "right")
    host = host_at()
    host.connect(raise_exceptions=True)
    yield host, asked
    host.disconnect()


def test_put_and_get_ask_for_the_password_that_sudo_wants(asking_host, tmp_path):
    host, asked = asking_host
    remote = str(tmp_path / "file")
    arguments = {"_sudo": True, "_sudo_user": OTHER}
    assert host.put_file(io.BytesIO(b"content"), remote, **arguments)
    assert len(asked) == 1
    got = io.BytesIO()
    assert host.get_file(remote, got, **arguments)
    assert got.getvalue() == b"content"
    assert len(asked) == 1


def test_get_asks_for_the_password_that_sudo_wants(asking_host, tmp_path):
    host, asked = asking_host
    (tmp_path / "file").write_text("content")
    got = io.BytesIO()
    assert host.get_file(str(tmp_path / "file"), got, _sudo=True, _sudo_user=OTHER)
    assert got.getvalue() == b"content"
    assert len(asked) == 1


def test_put_of_a_pipe_is_not_begun_anew(asking_host, tmp_path):
    """Its content is gone once it was read: a second upload would be an empty file."""
    host, asked = asking_host
    reader, writer = os.pipe()
    os.write(writer, b"content")
    os.close(writer)
    with open(reader, "rb") as pipe, pytest.raises(OSError, match="a password is required"):
        host.put_file(pipe, str(tmp_path / "file"), _sudo=True, _sudo_user=OTHER)
    assert not asked
    assert not (tmp_path / "file").exists()


def test_put_in_place_keeps_the_file_that_others_have_open(tmp_path):
    for how, is_same in (("replace", False), ("in-place", True)):
        path = tmp_path / how
        path.write_text("old")
        before = path.stat().st_ino
        host = host_at(agent_put=how)
        host.connect(raise_exceptions=True)
        host.put_file(io.BytesIO(b"new"), str(path))
        host.disconnect()
        assert path.read_text() == "new"
        assert (path.stat().st_ino == before) is is_same


def test_put_in_another_way_is_refused(tmp_path):
    with pytest.raises(ConnectError, match="agent_put is 'sideways': give replace or in-place"):
        host_at(agent_put="sideways").connect(raise_exceptions=True)
