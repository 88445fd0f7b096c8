"""A client that was written from SPEC.md alone, against the real agent and the transcripts in `protocol/vectors`."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import msgpack
import pytest

from tests.stranger.client import (
    CANCEL,
    CREDIT,
    DATA,
    GOODBYE,
    HEADER,
    MAGIC,
    OPEN,
    SIGNAL,
    U64,
    Denied,
    Link,
    LinkLost,
    Refused,
    Session,
    SessionOver,
    frame,
    frames,
    key_line,
)

VECTORS = json.loads((Path(__file__).parents[2] / "protocol/vectors/transcripts.json").read_text())
MIB = 1_048_576

# noiseprotocol warns of a fixed ephemeral key, which is what a test vector is.
pytestmark = pytest.mark.filterwarnings("ignore:One of ephemeral keypairs is already set")


class Agent:
    def __init__(self, state_dir):
        self.command = [sys.executable, "-m", "pyinfra_agent"]
        self.state_dir = str(state_dir)
        self.process = subprocess.Popen(
            [*self.command, "serve", "--listen", "127.0.0.1:0", "--state-dir", self.state_dir, "--no-announce"],
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in self.process.stderr:
            if found := re.search(r"listening address=([0-9.]+):([0-9]+)", line):
                self.address = (found[1], int(found[2]))
                break
        else:
            raise AssertionError("the agent does not say where it listens")
        # It logs on, and waits for ever where nobody reads.
        self.drain = threading.Thread(target=self.process.stderr.read)
        self.drain.start()

    def authorize(self, secret):
        subprocess.run(
            [*self.command, "authorize", "--state-dir", self.state_dir, key_line(secret)],
            check=True,
            capture_output=True,
        )

    def dial(self):
        return socket.create_connection(self.address, timeout=10)

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.drain.join()
        self.process.stderr.close()


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    agent = Agent(tmp_path_factory.mktemp("state"))
    yield agent
    agent.stop()


@pytest.fixture(scope="module")
def secret(agent):
    secret = os.urandom(32)
    agent.authorize(secret)
    return secret


@pytest.fixture
def session(agent, secret):
    session = Session(agent.dial, secret)
    yield session
    session.drop()


def turns_until(session, condition):
    for _ in range(10_000):
        if condition():
            return
        session.turn()
    raise AssertionError("never came about")


# Requests.


def test_client_runs_command_and_gets_both_outputs_and_exit(session):
    result, stdout, stderr = session.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result, stdout, stderr) == ({"exit": 3}, b"out\n", b"err\n")


def test_client_sends_more_input_than_a_window_and_gets_it_back(session):
    """Both windows are used up several times over, in both directions at once."""
    data = os.urandom(3 * MIB)
    result, stdout, _ = session.run(["cat"], stdin=data, window=131_072)
    assert result == {"exit": 0}
    assert stdout == data


def test_client_sends_empty_input_and_command_sees_its_end(session):
    assert session.run(["wc", "-c"], stdin=b"")[1].strip() == b"0"


def test_client_sends_variables_directory_and_script(session, tmp_path):
    script = b"# " + b"x" * 200_000 + b'\necho "$GREETING" from $(pwd); cat'
    result, stdout, stderr = session.run(
        ["sh", "-c", ""],
        stdin=script + b"input",
        script_index=2,
        script_size=len(script),
        env={b"GREETING": b"hello"},
        cwd=os.fsencode(tmp_path),
    )
    assert (result, stderr) == ({"exit": 0}, b"")
    assert stdout == b"hello from " + os.fsencode(tmp_path) + b"\ninput"


def test_client_sends_signal_and_result_names_it(session):
    channel = session.exec(["sh", "-c", "echo ready; exec sleep 10"])
    turns_until(session, lambda: channel.down[0] == b"ready\n")
    session.steer(channel, SIGNAL, {"signal": int(signal.SIGTERM)})
    assert session.wait(channel) == {"exit": None, "signal": signal.SIGTERM}


def test_client_cancels_command_and_result_says_so(session):
    channel = session.exec(["sh", "-c", "echo ready; exec sleep 10"])
    turns_until(session, lambda: channel.down[0] == b"ready\n")
    session.steer(channel, CANCEL, {})
    assert session.wait(channel) == {"exit": None, "signal": signal.SIGTERM, "reason": "cancelled"}


def test_client_waits_on_one_command_while_another_runs(session):
    slow = session.exec(["sh", "-c", "read line; echo $line"], stdin=b"")
    slow.up = None  # keeps its input open
    assert session.run(["echo", "quick"])[1] == b"quick\n"
    slow.up = b"slow\n"
    assert session.wait(slow) == {"exit": 0}
    assert slow.down[0] == b"slow\n"


@pytest.mark.parametrize("size", [0, 1024, 3 * MIB])
def test_client_puts_file_and_gets_the_same_bytes(session, tmp_path, size):
    path, content = tmp_path / "file", os.urandom(size)
    result = session.wait(session.put(str(path), content, mode=0o640))
    assert result == {"size": size, "created": True}
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o7777 == 0o640
    assert session.get(str(path)) == content


def test_client_puts_wrong_digest_and_old_file_stays(session, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    channel = session.open("put", {"path": os.fsencode(path)}, up=b"new", end={"size": 3, "digest": bytes(4)})
    with pytest.raises(Refused) as caught:
        session.wait(channel)
    assert caught.value.code == "digest-mismatch"
    assert path.read_bytes() == b"old"


def test_client_asks_for_stat_of_file_link_and_nothing(session, tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    stat = session.stat(str(tmp_path / "file"))
    assert (stat["type"], stat["size"], stat["uid"]) == ("file", 5, os.getuid())
    assert session.stat(str(tmp_path / "link"))["type"] == "file"
    assert session.stat(str(tmp_path / "link"), follow=False)["target"] == b"file"
    assert session.stat(str(tmp_path / "nothing")) is None


@pytest.mark.parametrize(
    ("request_word", "fields", "code"),
    [
        ("get", {"path": b"/nonexistent/file"}, "not-found"),
        ("get", {"path": b"/"}, "is-directory"),
        ("get", {"path": b"/dev/null"}, "not-regular"),
        ("get", {"path": b""}, "bad-request"),
        ("get", {}, "bad-request"),
        ("exec", {"argv": [b"/nonexistent/program"]}, "spawn"),
        ("exec", {"argv": [b""]}, "spawn"),
        ("exec", {"argv": []}, "bad-request"),
        ("exec", {"argv": ["text"]}, "bad-request"),
        ("stat", {"path": b"/", "follow": 1}, "bad-request"),
        ("stat", {"path": b"/", "window": 1}, "bad-request"),
        ("dance", {}, "bad-request"),
    ],
)
def test_client_asks_for_what_cannot_be_and_only_that_is_refused(session, request_word, fields, code):
    with pytest.raises(Refused) as caught:
        session.wait(session.open(request_word, fields))
    assert caught.value.code == code
    assert session.attempt == 1
    assert session.run(["true"])[0] == {"exit": 0}
    assert session.attempt == 1


def test_client_sends_unknown_fields_and_agent_ignores_them(session):
    assert session.run(["true"], later={b"any": [1.5, None, {"deep": b"er"}]})[0] == {"exit": 0}


# The link.


def test_client_pings_and_agent_repeats_the_number(session):
    session.ping(2**64 - 1)
    assert session.pongs == [2**64 - 1]


def test_client_sends_records_past_the_rekey_and_agent_follows(session):
    assert session.run(["echo", "before"])[1] == b"before\n"
    for _ in range(66):
        session.link.write(b"".join(session.link.seal(b"") for _ in range(1000)))
    assert session.run(["echo", "after"])[1] == b"after\n"
    assert session.attempt == 1


def test_client_offers_both_suites_and_goes_on_with_the_choice(agent, secret):
    session = Session(agent.dial, secret, offer=(2, 1))
    assert session.run(["echo", "hello"])[1] == b"hello\n"
    session.close()


def test_client_without_authorisation_is_denied_until_it_is_let_in(agent):
    secret = os.urandom(32)
    session = Session(agent.dial, secret)
    session.exec(["true"])
    with pytest.raises(Denied):
        session.turn()
    agent.authorize(secret)
    assert session.run(["true"])[0] == {"exit": 0}
    session.close()


def test_client_does_not_trust_agent_and_says_nothing_more(agent, secret):
    seen = []
    session = Session(agent.dial, secret, trust=lambda key: seen.append(key) is not None)
    session.exec(["true"])
    with pytest.raises(Denied):
        session.turn()
    line = subprocess.run([*agent.command, "key", "--state-dir", agent.state_dir], check=True, capture_output=True)
    assert seen == [base64.b64decode(line.stdout.split()[1])]


@pytest.mark.parametrize(
    "first_bytes",
    [b"GET / HTTP/1.1\r\n\r\n", MAGIC[:-1] + b"\x02\x01\x01", MAGIC + b"\x00", MAGIC + b"\x01\x63" + bytes([9]) * 32],
    ids=["http", "version-2", "no-suite", "unknown-suite"],
)
def test_client_sends_wrong_preface_and_agent_closes_without_an_answer(agent, first_bytes):
    with agent.dial() as sock:
        sock.sendall(first_bytes)
        with contextlib.suppress(ConnectionResetError):  # closed with bytes unread
            assert sock.recv(1) == b""


@pytest.mark.parametrize(
    ("plaintext", "code"),
    [
        (frame(DATA, 1, b"x"), "frame"),
        (frame(99, 1, b""), "frame"),
        (frame(4, 1, b"\x80"), "frame"),
        (b"\x01\x00", "frame"),
        (HEADER.pack(OPEN, 1, 1, 1) + b"\x80", "frame"),
        (frame(CREDIT, 0, bytes(8)), "frame"),
        (frame(16, 0, U64.pack(1)), "resume"),
        (frame(16, 0, bytes(4)), "frame"),
        (frame(19, 0, b"\x80"), "message"),
        (frame(19, 0, b"\x81\xa2id\xc3"), "message"),
        (frame(21, 0, b"\xc1"), "message"),
    ],
)
def test_client_breaks_protocol_and_agent_names_the_class(session, plaintext, code):
    session.connect()
    session.link.write(session.link.seal(plaintext))
    last = list(frames(session.link.read_record()))[-1]
    assert last[0] == GOODBYE
    assert msgpack.unpackb(last[3])["code"] == code
    session.drop()
    session.exec(["true"])
    with pytest.raises(SessionOver, match="unknown"):
        session.turn()


def test_client_sends_more_data_than_granted_and_session_ends(session):
    """GOODBYE says why, unless the connection was reset before it could be read (11.2)."""
    channel = session.exec(["sleep", "3"], stdin=b"")
    channel.up = None
    session.turn()
    while channel.up_sent <= channel.up_limit:
        session.send(DATA, channel.number, bytes(65_511))
        channel.up_sent += 65_511
    with pytest.raises(SessionOver, match=r"window|unknown"):
        session.wait(channel)


# Links that are lost.


def test_client_drops_link_between_numbered_lines_and_gets_all_once(session, tmp_path):
    """10,000 lines of 200 bytes do not fit the window, so every drop meets a command that is still printing."""
    log = tmp_path / "runs"
    channel = session.exec(["sh", "-c", f"echo run >> {log}; seq -f %0200.0f 10000"], window=131_072)
    for drop in range(1, 8):
        turns_until(session, lambda drop=drop: len(channel.down[0]) > drop * 250_000)
        assert channel.is_open
        session.drop()
    assert session.wait(channel) == {"exit": 0}
    assert session.attempt == 8
    assert channel.down[0] == b"".join(b"%0200d\n" % number for number in range(1, 10_001))
    assert log.read_text() == "run\n"


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_client_drops_link_as_soon_as_request_is_written_and_it_is_carried_out_once(session, tmp_path, cut):
    """Whether the OPEN arrived is for the resume point to say; half a record may stand behind it."""
    log = tmp_path / "runs"
    for number in range(20):
        channel = session.exec(["sh", "-c", f"echo {number} >> {log}; echo done {number}"])
        if session.link is None:
            session.connect()
        session._pump()
        session.link.write((b"\x40\x00" + bytes(100))[:cut])
        session.drop()
        assert session.wait(channel) == {"exit": 0}
        assert channel.down[0] == b"done %d\n" % number
    assert session.attempt == 21
    assert log.read_text().split() == [str(number) for number in range(20)]


def test_client_drops_link_while_command_waits_for_input(session):
    channel = session.exec(["sh", "-c", "echo one; read line; echo $line; exit 7"], stdin=b"")
    channel.up = None
    turns_until(session, lambda: channel.down[0] == b"one\n")
    session.drop()
    channel.up = b"two\n"
    assert session.wait(channel) == {"exit": 7}
    assert channel.down[0] == b"one\ntwo\n"


def test_client_drops_link_during_upload_and_file_is_exact(session, tmp_path):
    path, content = tmp_path / "file", os.urandom(32 * MIB)  # more than three of the largest windows
    path.write_bytes(b"old")
    channel = session.put(str(path), content)
    for _ in range(3):
        sent = channel.up_sent
        turns_until(session, lambda sent=sent: channel.up_sent > sent)
        assert channel.up_sent < len(content)
        assert path.read_bytes() == b"old"
        session.drop()
    assert session.wait(channel) == {"size": len(content)}
    assert session.attempt == 4
    assert path.read_bytes() == content


def test_client_drops_link_during_download_and_content_is_exact(session, tmp_path):
    path, content = tmp_path / "file", os.urandom(3 * MIB)
    path.write_bytes(content)
    channel = session.open("get", {"path": os.fsencode(path), "window": 131_072})
    for drop in range(1, 5):
        turns_until(session, lambda drop=drop: len(channel.down[0]) > drop * 600_000)
        session.drop()
    assert session.wait(channel)["size"] == len(content)
    assert channel.down[0] == content


def test_client_uses_session_from_a_newer_link_and_the_older_one_ends(agent, secret, session):
    assert session.run(["true"])[0] == {"exit": 0}
    older = session.link
    session.link = None
    assert session.run(["true"])[0] == {"exit": 0}
    with older.sock, pytest.raises(LinkLost):
        list(iter(older.read_record, None))  # until its end
    assert session.run(["true"])[0] == {"exit": 0}


def test_client_comes_with_an_old_attempt_and_hears_stale(agent, secret, session):
    assert session.run(["true"])[0] == {"exit": 0}
    other = Session(agent.dial, secret, identifier=session.identifier)
    other.exec(["true"])
    with pytest.raises(SessionOver, match="stale"):
        other.turn()
    assert session.run(["true"])[0] == {"exit": 0}
    assert session.attempt == 1


def test_client_resumes_closed_session_and_hears_unknown(session):
    session.run(["true"])
    session.close()
    session.exec(["true"])
    with pytest.raises(SessionOver, match="unknown"):
        session.turn()


# The vectors.


def offer_of(link):
    preface = bytes.fromhex(link["connector_preface_and_message_1"])[:-32]
    return tuple(preface[len(MAGIC) + 1 :])


def scripted(link, records):
    """Returns our socket, with all that the agent says on it already there, and the other end."""
    ours, theirs = socket.socketpair()
    said = [record["record"] for record in records if record["from"] == "agent" and record["arrives"]]
    theirs.sendall(bytes.fromhex(link["agent_preface_and_message_2"] + "".join(said)))
    theirs.shutdown(socket.SHUT_WR)
    return ours, theirs


@pytest.mark.parametrize("transcript", VECTORS["transcripts"], ids=lambda transcript: transcript["protocol_name"])
@pytest.mark.parametrize("number", [0, 1], ids=["first-link", "second-link"])
def test_client_shakes_hands_and_seals_as_the_transcript(transcript, number):
    link = transcript["links"][number]
    ours, theirs = scripted(link, [])
    with ours, theirs:
        client = Link(
            ours,
            bytes.fromhex(VECTORS["controller_secret"]),
            offer_of(link),
            bytes.fromhex(link["connector_ephemeral_secret"]),
        )
        assert client.agent_key.hex() == VECTORS["agent_public"]
        client.authenticate(msgpack.unpackb(bytes.fromhex(link["message_3_payload"])))
        assert theirs.recv(65_536).hex() == link["connector_preface_and_message_1"] + link["message_3"]
        assert client.noise.get_handshake_hash().hex() == link["handshake_hash"]
        for record in link["records"]:
            if record["from"] == "connector":
                assert client.seal(bytes.fromhex(record["plaintext"])).hex() == record["record"]
            else:
                client._buffer = bytes.fromhex(record["record"])
                assert client.read_record().hex() == record["plaintext"]


@pytest.mark.parametrize("transcript", VECTORS["transcripts"], ids=lambda transcript: transcript["protocol_name"])
def test_client_holds_the_conversation_of_the_transcript(transcript):
    """What the connector of the transcript says about requests, the client says byte for byte, and over again."""
    pairs = [scripted(link, link["records"]) for link in transcript["links"]]
    dialled = iter([ours for ours, _ in pairs])
    payload = msgpack.unpackb(bytes.fromhex(transcript["links"][0]["message_3_payload"]))
    session = Session(
        lambda: next(dialled),
        bytes.fromhex(VECTORS["controller_secret"]),
        trust=lambda key: key.hex() == VECTORS["agent_public"],
        offer=offer_of(transcript["links"][0]),
        identifier=payload["session"],
        ephemerals=tuple(bytes.fromhex(link["connector_ephemeral_secret"]) for link in transcript["links"]),
    )

    result, stdout, stderr = session.run(["sh", "-c", "uname -n; echo oops >&2; exit 3"])
    assert (result, stdout, stderr) == ({"exit": 3}, b"web1\n", b"oops\n")
    put = session.put("/etc/motd", bytes(range(256)) * 4, mode=0o644)
    session._pump()  # a record of its own
    stat = session.open("stat", {"path": b"/etc/motd"})
    assert session.wait(put) == {"size": 1024, "created": True}
    assert session.attempt == 2
    assert session.wait(stat)["stat"] == {"type": "file", "mode": 0o644, "size": 1024}
    session.close()

    for (ours, theirs), link in zip(pairs, transcript["links"], strict=True):
        with ours, theirs:
            said = b"".join(iter(lambda theirs=theirs: theirs.recv(65_536), b""))
        records = "".join(record["record"] for record in link["records"] if record["from"] == "connector")
        assert said.hex() == link["connector_preface_and_message_1"] + link["message_3"] + records
