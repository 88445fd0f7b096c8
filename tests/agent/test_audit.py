"""What the log keeps of each request, in each of its forms, and how `pyinfra-agent audit` finds it again."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
import time

import pytest

from pyinfra_agent import _log, cli
from pyinfra_agent._log import LogFormat, log, use_format
from pyinfra_agent_protocol import Get, Put
from pyinfra_agent_protocol.keys import fingerprint
from tests.agent.helpers import PEER, House, sh

OWN = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def as_json():
    use_format(LogFormat.JSON)
    yield
    use_format(LogFormat.TEXT)


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """A socket in the journal's place."""
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(path)
        listening.settimeout(5)
        monkeypatch.setattr(_log, "_JOURNAL_SOCKET", path)
        use_format(LogFormat.JOURNAL)
        yield listening
    use_format(LogFormat.TEXT)


def entries(capsys, event="request"):
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [entry for entry in found if entry["event"] == event]


async def test_request_leaves_one_line_that_says_who_what_and_how_it_ended(nursery, as_json, capsys, tmp_path):
    controller = await House(nursery).welcome()
    path = tmp_path / "f"
    await controller.ask(sh("echo secret; exit 3", label="echo ***"))
    await controller.ask(sh("kill -9 $$"))
    await controller.ask(Put(bytes(path)), b"12345")
    await controller.ask(Get(bytes(path)))
    await controller.ask(Get(b"/nonexistent"))
    failed, killed, put, got, missing = entries(capsys)
    for entry in (failed, killed, put, got, missing):
        assert (entry["controller"], entry["peer"], entry["user"]) == ("tester", PEER, OWN)
        assert entry["key"] == fingerprint(controller.key.public)
        assert entry["ms"] >= 0
    assert (failed["request"], failed["what"], failed["exit"], failed["sent"]) == ("exec", "echo ***", 3, 7)
    assert (killed["signal"], "exit" in killed, "what" in killed) == (9, False, False)
    assert (put["path"], put["received"], put["outcome"]) == (str(path), 5, "done")
    assert (got["sent"], missing["outcome"]) == (5, "not-found")


async def test_connection_leaves_a_line_with_its_source_and_key(nursery, as_json, capsys):
    controller = await House(nursery).welcome()
    (entry,) = entries(capsys, "connected")
    assert (entry["peer"], entry["key"]) == (PEER, fingerprint(controller.key.public))


def test_json_line_is_whole_however_long_its_values(as_json, capsys):
    log("request", what="\u2028" * 1024, path=b"/\xff" * 2000)
    line = capsys.readouterr().err
    assert len(line) < 4096
    assert json.loads(line)["what"].startswith("\u2028")


def test_journal_entry_has_a_field_for_each_value_and_no_value_makes_a_field(journal):
    log("request", controller="eve\nPRIORITY=0", exit=3, nothing=None)
    data = journal.recv(65536)
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + size], data[9 + size :]
        assert name not in fields
        fields[name] = value
    assert fields == {
        b"MESSAGE": b'request controller="eve\\nPRIORITY=0" exit=3',
        b"PRIORITY": b"6",
        b"SYSLOG_IDENTIFIER": b"pyinfra-agent",
        b"PYINFRA_AGENT_EVENT": b"request",
        b"PYINFRA_AGENT_CONTROLLER": b"eve\nPRIORITY=0",
        b"PYINFRA_AGENT_EXIT": b"3",
    }


def test_journal_that_takes_nothing_stops_nobody_and_the_loss_is_counted(journal, monkeypatch):
    path = _log._JOURNAL_SOCKET
    monkeypatch.setattr(_log, "_JOURNAL_SOCKET", "/nonexistent")
    log("lost")
    log("lost")
    monkeypatch.setattr(_log, "_JOURNAL_SOCKET", path)
    log("found")
    assert b"PYINFRA_AGENT_DROPPED=2\n" in journal.recv(65536)


@pytest.mark.parametrize("form", [LogFormat.TEXT, LogFormat.JSON, LogFormat.JOURNAL])
def test_line_costs_less_than_50_microseconds(form, tmp_path, monkeypatch):
    path = str(tmp_path / "journal")
    with open(os.devnull, "w") as null, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(path)
        monkeypatch.setattr(_log, "_JOURNAL_SOCKET", path)
        monkeypatch.setattr(sys, "stderr", null)
        use_format(form)
        times = []
        for _ in range(400):
            started = time.perf_counter()
            log(
                "request", controller="alice@laptop", key="di7uj-2uklm-5jrgo-46kvd-aoz76", peer=PEER,
                session="01234567",
                request="exec", outcome="done", exit=0, what="sh -c 'echo hello world'", user="root", sent=1234, ms=3,
            )  # fmt: skip
            times.append(time.perf_counter() - started)
            if form is LogFormat.JOURNAL:
                listening.recv(65536)
        use_format(LogFormat.TEXT)
    times.sort()
    print(f"{form.value}: {times[len(times) // 2] * 1e6:.1f} us")
    assert times[len(times) // 4] < 50e-6


LINES = [
    {"time": "2026-01-01T00:00:00.000Z", "event": "request", "controller": "a", "request": "exec", "outcome": "done",
     "exit": 0, "user": "root", "what": "one"},
    {"time": "2026-01-02T00:00:00.000Z", "event": "request", "controller": "b", "key": "k", "request": "exec",
     "outcome": "done", "exit": 1, "user": "deploy", "what": "two"},
    {"time": "2026-01-03T00:00:00.000Z", "event": "request", "controller": "a", "request": "put",
     "outcome": "denied", "user": "root", "what": "three"},
    {"time": "2026-01-04T00:00:00.000Z", "event": "denied", "peer": PEER, "what": "four"},
    {"time": "2026-01-04T00:00:00.000Z", "event": "listening", "what": "never"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "one two three four"),
        (["--failed"], "two three four"),
        (["--controller", "a"], "one three"),
        (["--controller", "k"], "two"),
        (["--request", "put"], "three"),
        (["--user", "deploy"], "two"),
        (["--since", "2026-01-02T12:00"], "three four"),
        (["--since", "1h"], ""),
        (["--failed", "--controller", "a", "--json"], "three"),
    ],
)
def test_audit_filters_json_lines(tmp_path, capsys, options, expected):
    file = tmp_path / "log"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in LINES) + "Traceback (most recent call last):\n")
    assert cli.main(["audit", str(file), *options]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    shown = [json.loads(x)["what"] if "--json" in options else x.partition("what=")[2].split()[0] for x in lines]
    assert " ".join(shown) == expected
    assert "line 6" in printed.err


def test_audit_reads_the_journal_by_its_own_fields(tmp_path, monkeypatch, capsys):
    fields = {"__REALTIME_TIMESTAMP": "1767225600000000", "PYINFRA_AGENT_EVENT": "request", "_PID": "1"}
    fields |= {"PYINFRA_AGENT_EXIT": "2", "PYINFRA_AGENT_WHAT": list(b"a\nb")}
    program = tmp_path / "journalctl"
    program.write_text(f"#!/bin/sh\necho \"$@\" >{tmp_path}/asked\ncat <<'EOF'\n{json.dumps(fields)}\nEOF\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert cli.main(["audit", "--failed", "--since", "2025-12-31"]) == 0
    assert capsys.readouterr().out == '2026-01-01T00:00:00.000Z request exit=2 what="a\\nb"\n'
    assert (tmp_path / "asked").read_text() == "-q -o json -t pyinfra-agent --since @1767139200\n"


def test_stderr_that_leads_to_the_journal_is_known_by_its_inode(tmp_path):
    program = "from pyinfra_agent import _log; print(_log._leads_to_the_journal())"
    with open(tmp_path / "stderr", "w") as file:
        status = os.fstat(file.fileno())
        for stream, expected in (
            (f"{status.st_dev}:{status.st_ino}", os.path.exists(_log._JOURNAL_SOCKET)),
            ("1:2", False),
        ):
            done = subprocess.run(
                [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=file, text=True, check=True,
                env=os.environ | {"JOURNAL_STREAM": stream},
            )  # fmt: skip
            assert done.stdout.strip() == str(expected)
