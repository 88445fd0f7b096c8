"""What a client does on a real agent."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import gevent
import pytest

from pyinfra_agent_connector._errors import AgentError, Refused
from pyinfra_agent_protocol import Digest, ExecResult, GetResult, PtySize
from tests.connector.helpers import FakeAgent, Output, client_of, run_python, until


def is_running(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(") ")[2][0] not in "ZX"
    return False


def test_client_runs_a_command(client):
    output = Output()
    ended = client.run(["sh", "-c", "echo out; echo err >&2; exit 3"], on_output=output)
    assert (ended.exit, output.stdout, output.stderr) == (3, b"out\n", b"err\n")


def test_client_gives_environment_directory_and_odd_words(client, tmp_path):
    output = Output()
    words = ["a b", "", "é", "\udcff", "'\"$x\\", "-n", "\n"]
    client.run(
        ["sh", "-c", 'pwd; echo "$V"; shift; printf "%s|" "$@"', "sh", "-", *words],
        env={"V": "w é"},
        cwd=str(tmp_path),
        on_output=output,
    )
    expected = f"{tmp_path}\nw é\n{''.join(word + '|' for word in words)}"
    assert output.stdout == os.fsencode(expected)


@pytest.mark.parametrize("size", [32 * 1024, 32 * 1024 + 1, 200_000, 1_000_000])
def test_client_sends_a_script_of_any_size(client, size):
    """A script above the frame's size, and above Linux's limit for one argument, arrives whole."""
    output = Output()
    script = f"wc -c; : {'x' * size}; echo done"
    client.run(["sh", "-c", script], stdin=b"12345", on_output=output)
    assert output.stdout.split() == [b"5", b"done"]


@pytest.mark.parametrize("size", [0, 5, 32 * 1024, 32 * 1024 + 1, 3_000_000])
def test_client_feeds_bytes(client, size):
    content = os.urandom(size)
    output = Output()
    client.run(["cat"], stdin=content, on_output=output)
    assert output.stdout == content


def test_client_feeds_what_is_made_while_the_command_runs(client):
    """Each item of a generator is there before the next one is made."""
    output = Output()

    def lines():
        for number in range(3):
            yield b"%d\n" % number
            until(lambda number=number: output.stdout.count(b"\n") > number)

    client.run(["cat"], stdin=lines(), on_output=output)
    assert output.stdout == b"0\n1\n2\n"


@pytest.mark.parametrize(
    "error", [ValueError("no more"), OSError("no more"), gevent.Timeout()], ids=["value", "os", "timeout"]
)
def test_client_cancels_a_command_whose_input_fails(client, error, tmp_path):
    """A generator that raises ends the command, and the caller gets an OSError with the reason."""
    pid = tmp_path / "pid"

    def lines():
        yield b"one\n"
        until(pid.exists)
        until(pid.read_text)
        raise error

    with pytest.raises(OSError, match=r"no more|Timeout"):
        client.run(["sh", "-c", f"echo $$ > {pid}; exec cat"], stdin=lines())
    until(lambda: not is_running(int(pid.read_text())))
    assert client.run(["true"]).exit == 0


def test_client_stops_feeding_a_command_that_has_ended(client):
    """Input that nobody reads, without end, does not hold the result back."""
    made = []

    def endless():
        while True:
            made.append(1)
            yield bytes(65536)

    assert client.run(["sh", "-c", "head -c 10 >/dev/null; exit 4"], stdin=endless()).exit == 4
    count = len(made)
    gevent.sleep(0.05)
    assert len(made) == count


def test_client_gives_a_terminal(client):
    output = Output()
    client.run(["sh", "-c", "tty; stty size"], pty=PtySize(rows=33, columns=101), on_output=output)
    assert b"/dev/pts/" in output.stdout
    assert b"33 101" in output.stdout


def test_client_ends_a_command_whose_time_is_over(client):
    output = Output()
    ended = client.run(["sh", "-c", "echo begun; sleep 30"], timeout_seconds=0.2, on_output=output)
    assert ended.reason == "timeout"
    assert output.stdout == b"begun\n"


def test_client_says_how_a_command_was_killed(client):
    assert client.run(["sh", "-c", "kill -9 $$"]).signal == 9


def test_client_says_that_a_program_is_missing(client):
    with pytest.raises(Refused, match="no-such-program") as caught:
        client.run(["no-such-program"])
    assert caught.value.code == "spawn"


# --- gevent.Timeout of the caller's ---


def test_timeout_in_run_cancels_the_command(client, tmp_path):
    """The process is gone soon afterwards, and the same link goes on."""
    output = Output()
    link = client._connection._link
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.3):
        client.run(["sh", "-c", "echo $$; exec sleep 60"], on_output=output)
    pid = int(output.stdout)
    until(lambda: not is_running(pid))
    assert client.run(["true"]).exit == 0
    assert client._connection._link is link


def test_timeout_in_run_while_input_flows_breaks_nothing(client):
    """A caller that is torn out of a full send never leaves half a record behind."""
    link = client._connection._link
    for _ in range(10):
        with gevent.Timeout(0.02, False):
            client.run(["sh", "-c", "sleep 60"], stdin=iter(lambda: bytes(65536), b""))
    output = Output()
    client.run(["echo", "well"], on_output=output)
    assert output.stdout == b"well\n"
    assert client._connection._link is link


def test_timeout_in_put_leaves_the_old_file(client, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def slow():
        yield bytes(500_000)
        gevent.sleep(60)

    with gevent.Timeout(0.1, False):
        client.put(slow(), str(path))
    until(lambda: os.listdir(tmp_path) == ["file"])
    assert path.read_bytes() == b"old"
    assert client.run(["true"]).exit == 0


def test_timeout_in_get_takes_what_still_comes(client, tmp_path):
    """Left downloads are consumed: after twenty of them the twenty-first is as whole as ever."""
    path = tmp_path / "file"
    content = os.urandom(4_000_000)
    path.write_bytes(content)
    for _ in range(20):
        with gevent.Timeout(0.005, False):
            client.get(str(path), lambda data: gevent.sleep(0.002))
    got = bytearray()
    client.get(str(path), got.extend)
    assert bytes(got) == content
    until(lambda: not client._connection._calls)


# --- files ---


@pytest.mark.parametrize("size", [0, 1, 65_280, 3_000_000])
def test_client_puts_and_gets(client, tmp_path, size):
    content = os.urandom(size)
    path = os.path.join(tmp_path, "é \udcff'\n")
    assert client.put([content] if size else [], path).size == size
    got = bytearray()
    assert client.get(path, got.extend).size == size
    assert bytes(got) == content


def test_client_put_whose_source_fails_changes_nothing(client, tmp_path):
    def broken():
        yield b"new"
        raise OSError("the disk is broken")

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError, match="the disk is broken"):
        client.put(broken(), str(tmp_path / "file"))
    until(lambda: os.listdir(tmp_path) == ["file"])
    assert (tmp_path / "file").read_bytes() == b"old"


def test_client_get_of_nothing_and_of_a_directory_is_refused(client, tmp_path):
    for path, code in ((tmp_path / "missing", "not-found"), (tmp_path, "is-directory")):
        with pytest.raises(Refused, match=str(path)) as caught:
            client.get(str(path), lambda data: None)
        assert caught.value.code == code


def test_client_get_that_is_not_what_was_sent_is_an_error():
    """A file whose digest does not match what arrived is not used."""

    def lie(conversation):
        session = conversation.open()
        request = conversation.request()
        session.send_data(request.channel, b"one thing")
        conversation.answer(request.channel, GetResult(9, Digest().digest()))
        conversation.read()

    with FakeAgent(lie) as fake:
        client = client_of(fake.port)
        with pytest.raises(AgentError, match="did not arrive as it was sent"):
            client.get("/etc/motd", lambda data: None)
        client._connection.drop()


def test_client_looks_at_files(client, tmp_path):
    (tmp_path / "file").write_text("12345")
    found = client.stat(str(tmp_path / "file"))
    assert found is not None
    assert found["size"] == 5
    assert client.stat(str(tmp_path / "missing")) is None


def test_client_asks_who_the_agent_is(client):
    assert client.info()
    assert client.user


def test_client_signals_and_resizes_a_command(agent, client):
    """What the call offers beyond `run` reaches the command."""
    from pyinfra_agent_protocol import Exec

    script = b"trap 'echo usr1' USR1; trap 'stty size; exit 0' WINCH; echo begun; while :; do sleep 0.01; done"
    request = Exec(argv=(b"sh", b"-c", script), pty=PtySize(rows=10, columns=20))
    with client._connection.call(request, "the script") as call:
        seen = b"".join(event.data for event in call.receive())
        call.signal(10)
        while b"usr1" not in seen:
            seen += b"".join(event.data for event in call.receive())
        call.resize(44, 55)
        while data := call.receive():
            seen += b"".join(event.data for event in data)
        assert call.result() == ExecResult(0)
    assert b"44 55" in seen


PROGRAM = """
import sys, time
from pyinfra_agent_connector._loopback import start_loopback
from tests.connector.helpers import client_of
import gevent
agents = [start_loopback() for _ in range(2)]
clients = [client_of(agent.port, agent.identity) for agent in agents]
began = time.monotonic()
gevent.joinall([gevent.spawn(client.run, ["sleep", "0.5"]) for client in clients * 2], raise_error=True)
print(time.monotonic() - began)
for client in clients: client.close()
for agent in agents: agent.stop()
"""


@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()\n"], ids=["unpatched", "patched"])
def test_client_works_in_a_process_that_is(patch):
    """Hosts run side by side whether or not the process is patched."""
    began = time.monotonic()
    assert 0.4 < float(run_python(patch + PROGRAM).stdout) < 0.95
    assert time.monotonic() - began < 5, "and it ends at once"
