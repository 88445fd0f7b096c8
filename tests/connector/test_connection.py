"""A session over links that come and go."""

from __future__ import annotations

import gc
import os
import re
import socket
import struct
import time
import weakref

import gevent
import gevent.os
import pytest

from pyinfra_agent_connector import _connection
from pyinfra_agent_connector._errors import AgentError, ConnectionLost, HungUp, NotAuthorized, Refused, Unreachable
from pyinfra_agent_protocol import ExecResult, Session, Side
from pyinfra_agent_protocol.keys import KeyPair
from tests.connector.helpers import (
    SECONDS,
    CuttingProxy,
    FakeAgent,
    Output,
    Peer,
    ServedAgent,
    client_of,
    free_port,
    hang_up,
    run_python,
    serve_quietly,
    until,
)


def test_requests_of_many_greenlets_share_one_link(agent, far_client, proxy):
    """Fifty commands at once run side by side over one connection, each with its own output."""

    def run(number):
        output = Output()
        far_client.run(["sh", "-c", f"sleep 0.2; echo {number}"], on_output=output)
        return output.stdout

    began = time.monotonic()
    jobs = [gevent.spawn(run, number) for number in range(50)]
    gevent.joinall(jobs, raise_error=True)
    assert [job.value for job in jobs] == [b"%d\n" % number for number in range(50)]
    assert time.monotonic() - began < 5
    assert proxy.links == 1


def test_requests_above_the_limit_wait_their_turn():
    """An agent that takes two requests at once never sees a third."""
    open_now = []
    most = []

    def two_at_once(conversation):
        conversation.open(Session(Side.AGENT, channels_max=2), channels=2)
        while True:
            request = conversation.request()
            open_now.append(request.channel)
            most.append(len(open_now))
            gevent.spawn_later(0.01, finish, conversation, request.channel)

    def finish(conversation, channel):
        open_now.remove(channel)
        conversation.answer(channel, ExecResult(0))

    with FakeAgent(two_at_once) as agent:
        client = client_of(agent.port)
        jobs = [gevent.spawn(client.run, ["true"]) for _ in range(8)]
        gevent.joinall(jobs, raise_error=True, timeout=10)
        client._connection.drop()
    assert all(job.value.exit == 0 for job in jobs)
    assert max(most) == 2


def test_request_that_waits_for_its_turn_survives_the_end_of_the_session():
    """Where the session ends while a request waits to be sent, it goes to the next session."""

    def one_and_break(conversation):
        conversation.open(Session(Side.AGENT, channels_max=1), channels=1)
        conversation.request()
        gevent.sleep(0.05)
        conversation.sock.sendall(conversation.transport.encrypt(b"\xff" * 8))
        conversation.sock.recv(10)

    def answer(conversation):
        conversation.open()
        conversation.answer(conversation.request().channel, ExecResult(7))
        while True:
            conversation.read()

    with FakeAgent(one_and_break, answer) as agent:
        client = client_of(agent.port)
        first = gevent.spawn(client.run, ["first"])
        gevent.sleep(0.01)
        second = gevent.spawn(client.run, ["second"])
        with pytest.raises(ConnectionLost):
            first.get(timeout=5)
        assert second.get(timeout=5).exit == 7
        client._connection.drop()


# --- an agent that hangs up ---


class Hasty(FakeAgent):
    """Hangs up on its first connections before it has answered, as an agent does that has to make room."""

    def __init__(self, count, *scripts, how="closed"):
        super().__init__(*scripts)
        self._count = count
        self._how = how

    def _converse(self, sock):
        if self.connections > self._count:
            super()._converse(sock)
        elif self._how == "closed":
            sock.recv(4096)
        elif self._how == "after a part":
            sock.recv(4096)
            sock.sendall(b"pyinfra-agent")
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("how", ["closed", "reset", "after a part"])
def test_connect_tries_again_where_the_agent_hangs_up_before_it_has_answered(how):
    """An agent that makes room for others drops connections at random, and is asked again."""
    with Hasty(5, serve_quietly, how=how) as agent:
        client = client_of(agent.port)
        client.connect()
        assert client.is_connected
        assert agent.connections == 6
        client._connection.drop()


def test_connect_to_an_agent_that_always_hangs_up_ends_in_time_and_says_how_often():
    with Peer(lambda sock: sock.recv(4096)) as peer:
        began = time.monotonic()
        with pytest.raises(HungUp, match=r"closed the connection .*, \d+ times within 1 s: is agent_port") as caught:
            client_of(peer.port, connect_seconds=1).connect()
        assert time.monotonic() - began < 1.5
        told = int(re.search(r"(\d+) times", str(caught.value)).group(1))
        assert told == peer.connections > 3


def test_connect_stops_trying_as_soon_as_it_learns_more():
    """An agent that is stopped meanwhile is reported as what it is now."""
    with Peer(lambda sock: sock.recv(4096)) as peer:
        client = client_of(peer.port)
        job = gevent.spawn(client.connect)
        until(lambda: peer.connections > 1)
    with pytest.raises(Unreachable, match=r"nothing listens on .*before that it closed \d+ connections"):
        job.get(timeout=SECONDS)


def test_connect_asks_once_where_the_agent_has_answered():
    """Whoever is not let in, or has no room for a session, does not become welcome by asking again."""
    for script, error in ((lambda conversation: conversation.deny(), NotAuthorized), (hang_up, Unreachable)):
        with FakeAgent(script) as agent:
            with pytest.raises(error):
                client_of(agent.port).connect()
            assert agent.connections == 1


# --- resuming ---


def test_command_goes_on_over_a_lost_link(far_client, proxy, told, tmp_path):
    """The output is exact and the command ran once; the user reads two lines."""
    counter = tmp_path / "ran"
    output = Output()
    script = f"echo run >> {counter}; for i in $(seq 40); do echo line $i; sleep 0.01; done; echo end >&2"
    job = gevent.spawn(far_client.run, ["sh", "-c", script], on_output=output)
    until(lambda: output.stdout.count(b"\n") > 3)
    proxy.cut()
    ended = job.get(timeout=10)
    assert ended.exit == 0
    assert output.stdout == b"".join(b"line %d\n" % number for number in range(1, 41))
    assert output.stderr == b"end\n"
    assert counter.read_text() == "run\n"
    assert len(told) == 2
    assert "lost (" in told[0]
    assert "resumed: nothing was lost" in told[1]


@pytest.mark.parametrize("after", [200, 50_001, 1_000_000])
def test_upload_goes_on_over_lost_links(far_client, proxy, tmp_path, after):
    """A link that breaks in the middle of a record costs nothing of an upload."""
    content = os.urandom(3_000_000)
    proxy.cut_after("up", proxy.up + after, proxy.up + after + 700_001)
    result = far_client.put(
        [content[start : start + 65536] for start in range(0, len(content), 65536)], tmp_path / "up"
    )
    assert result.size == len(content)
    assert (tmp_path / "up").read_bytes() == content
    assert proxy.links == 3


@pytest.mark.parametrize("after", [100, 50_001, 1_000_000])
def test_download_goes_on_over_lost_links(far_client, proxy, tmp_path, after):
    content = os.urandom(3_000_000)
    (tmp_path / "down").write_bytes(content)
    proxy.cut_after("down", proxy.down + after, proxy.down + after + 700_001)
    got = bytearray()
    far_client.get(str(tmp_path / "down"), got.extend)
    assert bytes(got) == content
    assert proxy.links == 3


def test_idle_loss_is_silent(far_client, proxy, told):
    """A link that is lost while nothing is asked is replaced at the next request, without a word."""
    assert far_client.run(["true"]).exit == 0
    proxy.cut()
    until(lambda: not far_client.is_connected)
    assert far_client.run(["true"]).exit == 0
    assert told == []
    assert proxy.links == 2


def test_agent_that_was_restarted_leaves_the_outcome_open(agent, far_client, proxy):
    """Another agent process with the same key does not know the session, and the error says what that means."""
    key = KeyPair.generate()

    def die(conversation):
        conversation.open()
        conversation.request()

    with FakeAgent(die, lambda conversation: conversation.welcome("unknown"), key=key) as fake:
        client = client_of(fake.port)
        with pytest.raises(ConnectionLost) as caught:
            client.run(["reboot"], what="reboot")
    text = str(caught.value)
    assert "reboot failed: the agent no longer knows the session" in text
    assert text.endswith("whether it has finished is not known")


def test_request_that_was_never_sent_says_so():
    """A request that was made while the link was down has certainly not run."""

    def lose(conversation):
        conversation.open()
        conversation.request()

    lost = gevent.event.Event()

    def unknown(conversation):
        lost.wait()
        conversation.welcome("unknown")

    with FakeAgent(lose, unknown) as fake:
        client = client_of(fake.port)
        first = gevent.spawn(client.run, ["first"])
        until(lambda: client._connection._resuming is not None)
        second = gevent.spawn(client.run, ["second"])
        gevent.sleep(0)
        lost.set()
        with pytest.raises(ConnectionLost, match="is not known"):
            first.get(timeout=5)
        with pytest.raises(ConnectionLost, match="it was never sent"):
            second.get(timeout=5)


def test_stale_answer_to_a_resume_says_who_has_it():
    def lose(conversation):
        conversation.open()
        conversation.request()

    fake = FakeAgent(lose, lambda conversation: conversation.welcome("stale"))
    with fake, pytest.raises(ConnectionLost, match="another process has resumed"):
        client_of(fake.port).run(["true"])


def test_resume_has_its_time(far_client, proxy, told):
    """An agent that does not come back is given up, with the reason and what is not known."""
    far_client._connection._resume_seconds = 0.3
    output = Output()
    job = gevent.spawn(far_client.run, ["sh", "-c", "echo begun; sleep 1"], on_output=output)
    until(lambda: output.stdout)
    proxy.refuse()
    with pytest.raises(ConnectionLost) as caught:
        job.get(timeout=5)
    assert "nothing listens" in str(caught.value)
    assert "could not be resumed within 0.3 s; whether it has finished is not known" in str(caught.value)
    assert len(told) == 1


def test_agent_that_welcomes_and_hangs_up_has_the_same_time(told):
    """Resuming again and again without a frame in between ends when the time is over, and does not spin."""

    def lose(conversation):
        conversation.open()
        conversation.request()

    def welcome_and_hang_up(conversation):
        conversation.welcome("resumed", conversation.payload.received + 1)

    with FakeAgent(lose, welcome_and_hang_up) as fake:
        client = client_of(fake.port, resume_seconds=0.8, notify=told.append)
        with pytest.raises(ConnectionLost, match=r"could not be resumed within 0\.8 s"):
            client.run(["true"])
        assert fake.connections < 12


def test_another_agent_is_not_resumed_with(agent, far_client, proxy):
    """The agent that opened the session has to be the one that resumes it, whatever key is trusted."""
    output = Output()
    job = gevent.spawn(far_client.run, ["sh", "-c", "echo begun; sleep 0.3"], on_output=output)
    until(lambda: output.stdout)
    with FakeAgent(serve_quietly) as other:
        proxy.retarget(other.port)
        proxy.cut()
        with pytest.raises(ConnectionLost, match="another agent answers"):
            job.get(timeout=5)
        assert other.conversations == [], "it has seen nothing of ours"


def test_goodbye_is_the_reason_that_the_user_reads(told):
    """What the agent says before it goes is shown, as one line without control characters."""

    def leave(conversation):
        session = conversation.open()
        conversation.request()
        session.send_goodbye("stopping", "the agent stops\n\x1b[2J")
        conversation.flush()

    fake = FakeAgent(leave, lambda conversation: conversation.welcome("unknown"))
    with fake, pytest.raises(ConnectionLost):
        client_of(fake.port, notify=told.append).run(["true"])
    assert "(the agent stops??[2J)" in told[0]


def test_refusal_is_one_line_that_no_terminal_obeys():
    def refuse(conversation):
        session = conversation.open()
        session.send_refusal(conversation.request().channel, "spawn", "no\r\n\x1b]0;title\x07 such thing")
        conversation.flush()
        conversation.read()

    with FakeAgent(refuse) as fake:
        client = client_of(fake.port)
        with pytest.raises(Refused) as caught:
            client.run(["true"])
        client._connection.drop()
    assert caught.value.code == "spawn"
    assert str(caught.value).isprintable()


def test_notice_that_raises_does_not_leave_the_caller_waiting():
    """Whatever goes wrong while resuming, the request ends with an error."""

    def lose(conversation):
        conversation.open()
        conversation.request()

    def fail(text):
        raise RuntimeError("no terminal")

    with FakeAgent(lose) as fake, pytest.raises(ConnectionLost, match="no terminal"):
        client_of(fake.port, notify=fail).run(["true"])


# --- closing ---


def test_close_ends_the_session_at_the_agent(agent):
    client = client_of(agent.port, agent.identity)
    client.connect()
    began = time.monotonic()
    client.close()
    client.close()
    assert time.monotonic() - began < 0.5
    assert not client.is_connected


def test_close_takes_a_second_at_most():
    with FakeAgent(serve_quietly) as fake:
        client = client_of(fake.port)
        client.connect()
        began = time.monotonic()
        client.close()
        assert 0.9 < time.monotonic() - began < 1.5


def test_close_on_a_dead_link_returns_at_once_and_silently(far_client, proxy, told):
    proxy.refuse()
    until(lambda: not far_client.is_connected)
    began = time.monotonic()
    far_client.close()
    assert time.monotonic() - began < 0.1
    assert told == []


def test_close_while_the_agent_hangs_up_does_not_resume(told):
    """A link that is lost during close is what was wanted."""

    def leave(conversation):
        conversation.open()
        conversation.request()

    with FakeAgent(leave) as fake:
        client = client_of(fake.port, notify=told.append)
        client.connect()
        began = time.monotonic()
        client.close()
        assert time.monotonic() - began < 0.5
        assert fake.connections == 1
    assert told == []


def test_close_ends_a_resume(far_client, proxy):
    """Closing while a lost link is being resumed fails the request now, and no link appears later."""
    output = Output()
    job = gevent.spawn(far_client.run, ["sh", "-c", "echo begun; sleep 0.5"], on_output=output)
    until(lambda: output.stdout)
    proxy.hold()
    proxy.cut()
    until(lambda: far_client._connection._resuming is not None)
    gevent.sleep(0.02)
    far_client.close()
    with pytest.raises(ConnectionLost, match="was closed"):
        job.get(timeout=1)
    proxy.release()
    gevent.sleep(0.05)
    assert not far_client.is_connected


def test_connect_anew_fails_what_is_open_and_works(client):
    """A second connect ends the first session; none of its requests waits for ever."""
    output = Output()
    job = gevent.spawn(client.run, ["sh", "-c", "echo begun; sleep 5"], on_output=output)
    until(lambda: output.stdout)
    client.connect()
    with pytest.raises(ConnectionLost):
        job.get(timeout=1)
    assert client.run(["true"]).exit == 0


def test_dropped_client_ends_its_greenlets(agent):
    """A client that nobody holds any more leaves neither greenlet nor socket."""
    client = client_of(agent.port, agent.identity)
    client.connect()
    link = client._connection._link
    greenlets = [weakref.ref(greenlet) for greenlet in link._greenlets]
    assert client.run(["true"]).exit == 0
    del client
    gc.collect()
    assert link.is_lost
    until(lambda: all(greenlet() is None or greenlet().dead for greenlet in greenlets))


def test_exit_closes_all_connections_in_parallel():
    """A process that disconnects from nobody ends within a second and tells every agent."""
    program = """
import sys, time, atexit
from tests.connector.helpers import client_of
clients = [client_of(int(port)) for port in sys.argv[1:]]
for client in clients:
    client.connect()
began = time.monotonic()
atexit._run_exitfuncs()
print(time.monotonic() - began)
"""
    closing = []

    def listen(conversation):
        conversation.open()
        closing.append(conversation.request().request.NAME)
        while True:
            conversation.read()

    with FakeAgent(listen) as fake:
        job = gevent.get_hub().threadpool.spawn(run_python, program, *[str(fake.port)] * 4)
        done = until(lambda: job.ready() and job.get(), 20)
    assert 0.8 < float(done.stdout) < 1.6
    assert len(closing) == 4
    assert len(set(closing)) == 1


# --- forks ---


def test_fork_leaves_the_link_to_the_parent(far_client, proxy):
    """The child cannot disturb the parent's link, and opens one of its own."""
    output = Output()
    script = "echo begun; read line; echo $line"
    go = gevent.event.Event()

    def lines():
        go.wait()
        yield b"on\n"

    job = gevent.spawn(far_client.run, ["sh", "-c", script], on_output=output, stdin=lines())
    until(lambda: output.stdout)
    pid = gevent.os.fork()
    if not pid:
        code = 1
        try:
            with gevent.Timeout(5):
                mine = Output()
                assert not far_client.is_connected
                far_client.run(["echo", "child"], on_output=mine)
                code = 0 if mine.stdout == b"child\n" else 2
        finally:
            os._exit(code)
    _, status = gevent.os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    go.set()
    assert job.get(timeout=5).exit == 0
    assert output.stdout == b"begun\non\n"
    assert far_client.run(["true"]).exit == 0


def test_fork_while_the_writer_waits_is_survived(client, tmp_path):
    """A child that inherits a link in the middle of an upload lives, and neither breaks the other's."""
    job = gevent.spawn(client.put, (bytes(65_280) for _ in range(400)), str(tmp_path / "file"))
    until(lambda: client._connection._calls)
    statuses = []
    for _ in range(3):
        gevent.sleep(0.005)
        pid = gevent.os.fork()
        if not pid:
            code = 1
            try:
                with gevent.Timeout(5):
                    gevent.sleep(0.01)
                    code = 0 if client.run(["true"]).exit == 0 else 2
            finally:
                os._exit(code)
        statuses.append(os.waitstatus_to_exitcode(gevent.os.waitpid(pid, 0)[1]))
    assert statuses == [0, 0, 0]
    assert job.get(timeout=5).size == 400 * 65_280


def test_fork_during_a_handshake_lets_only_one_go_on(monkeypatch):
    """A process that finds itself forked between two messages sends no third."""
    with FakeAgent(serve_quietly) as fake:

        def forked(key, certificate):
            monkeypatch.setattr(os, "getpid", lambda: -1)

        with pytest.raises(AgentError, match="forked"):
            client_of(fake.port, check_key=forked).connect()
        assert fake.conversations == []


# --- a real agent as a service ---


def test_served_agent_lets_in_whom_it_is_told_to(tmp_path, identity):
    """Denied with the line to type; that line lets in; killed and started again the session is unknown."""
    agent = ServedAgent(tmp_path / "state")
    try:
        proxy = CuttingProxy(agent.port)
        with proxy:
            client = client_of(proxy.port, identity)
            with pytest.raises(AgentError, match="pyinfra-agent authorize 'pyinfra-agent-key "):
                client.connect()
            agent.authorize(identity)
            client.connect()
            output = Output()
            job = gevent.spawn(client.run, ["sh", "-c", "echo begun; exec sleep 3"], on_output=output)
            until(lambda: output.stdout)
            agent.kill()
            agent = ServedAgent(tmp_path / "state")
            proxy.retarget(agent.port)
            with pytest.raises(ConnectionLost, match=r"no longer knows the session.*not known"):
                job.get(timeout=10)
            assert client.run(["true"]).exit == 0
            client.close()
    finally:
        agent.kill()


@pytest.fixture
def identity():
    from tests.connector.helpers import new_identity

    return new_identity()


def test_agent_gone_for_good_is_an_error_for_the_next_request_too():
    client = client_of(free_port())
    for _ in range(2):
        with pytest.raises(AgentError, match="nothing listens"):
            client.run(["true"])


def test_hung_connect_can_be_left(monkeypatch):
    """A Timeout of the caller's leaves no link and no lock behind."""
    with FakeAgent(lambda conversation: gevent.sleep(1), serve_quietly) as fake:
        client = client_of(fake.port)
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
            client.connect()
        client.connect()
        assert client.is_connected
        client._connection.drop()
    assert not client.is_connected
    assert client._connection not in _connection._connections
