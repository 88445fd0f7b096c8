"""The log: one line per event, whatever is put into it."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys

import pytest

from pyinfra_agent import _log
from pyinfra_agent._log import describe_failure, log, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("word", "word"),
        (7, "7"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "x"', '"say \\"x\\""'),
        ("back\\slash here", '"back\\\\slash here"'),
        ("a\nb", '"a\\nb"'),
        ("a\r\x1b[2Jb", '"a\\r\\x1b[2Jb"'),
        ("\u202eabc", '"\\u202eabc"'),
        ("\u2028x", '"\\u2028x"'),
        ("\ud800", '"\\ud800"'),
        ("größe", "größe"),
        (b"/tmp/\xff\n", '"/tmp/\\\\xff\\n"'),
    ],
)
def test_value_is_shown_as_one_printable_word(value, text):
    assert shown(value) == text
    assert shown(value).isprintable()


def test_line_is_an_event_and_its_facts(capsys, monkeypatch):
    monkeypatch.setattr(_log, "_WITH_TIME", False)
    log("link-lost", controller="alice", reason="closed by the controller", nothing=None)
    assert capsys.readouterr().err == 'link-lost controller=alice reason="closed by the controller"\n'


def test_line_begins_with_the_time_where_no_journal_adds_it(capsys, monkeypatch):
    monkeypatch.setattr(_log, "_WITH_TIME", True)
    log("event")
    time, _, rest = capsys.readouterr().err.partition(" ")
    assert rest == "event\n"
    assert time.endswith("Z")
    assert len(time) == 20


def test_no_value_can_make_a_second_line_or_a_second_fact(capsys):
    log("event", comment="x\n2030 connected controller=root", other='" admin=yes "')
    line, rest = capsys.readouterr().err.split("\n", 1)
    assert rest == ""
    names = [word.partition("=")[0] for word in shlex.split(line)]
    assert names[-2:] == ["comment", "other"]


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stderr", [Broken(), None], ids=["broken", "closed"])
def test_log_that_cannot_be_written_is_no_failure(monkeypatch, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    log("event")


def test_quiet_log_writes_nothing(capsys, monkeypatch):
    monkeypatch.setattr(_log, "_quiet", False)
    _log.be_quiet()
    log("event")
    assert capsys.readouterr().err == ""


def test_failure_is_described_without_its_text():
    try:
        int("hunter2")
    except ValueError as error:
        text = describe_failure(error)
    assert text.startswith("ValueError at test_log.py:")
    assert "hunter2" not in text


def test_failure_of_the_system_says_its_reason_and_not_its_file():
    text = describe_failure(OSError(28, "No space left on device", "/secret/file"))
    assert text == "OSError (No space left on device)"


def test_failure_in_a_group_is_the_first_one_in_it():
    class Group(Exception):
        exceptions = (KeyError("hunter2"),)

    assert describe_failure(Group()) == "KeyError"


def test_reader_that_has_stopped_loses_lines_and_holds_nobody_up():
    """What a full pipe could not take is counted in the first line that it takes again."""
    program = (
        "import os, sys\n"
        "from pyinfra_agent._log import log\n"
        "for number in range(5000): log('busy', number=number)\n"
        "print('done', flush=True)\n"
        "sys.stdin.readline()\n"
        "log('free')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "done\n"  # nobody has read stderr so far
        os.set_blocking(process.stderr.fileno(), False)
        lines = []
        while line := process.stderr.readline():
            lines.append(line)
        process.stdin.write("\n")
        process.stdin.close()
        os.set_blocking(process.stderr.fileno(), True)
        last = process.stderr.readlines()
    assert len(lines) < 5000
    assert last[-1].endswith(f"free dropped={5000 - len(lines)}\n")


def test_line_is_cut_at_what_a_pipe_takes_at_once(capfd):
    log("long", text="x" * 100_000)
    assert len(capfd.readouterr().err) == 4096
