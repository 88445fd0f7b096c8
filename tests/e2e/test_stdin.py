"""Standard input of real commands through pyinfra: whole, of any kind and size, and wanted or not."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
import time

import gevent
import pytest
from pyinfra.connectors import util

from tests.e2e.helpers import clean_environment
from tests.e2e.loopback import ROOT, connected, ends_with_status, succeeded

MIB = 1 << 20
SOAK = os.environ.get("PYINFRA_AGENT_SOAK") == "1"
LARGE_BYTES = {"generator": 1024 * MIB, "file": 1024 * MIB} if SOAK else {"generator": 256 * MIB, "file": 64 * MIB}
GROWTH_MAX_MIB = 24
PROMPT_SECONDS = 2
EVERY_BYTE = bytes(range(256))


@pytest.fixture(scope="module")
def host():
    with connected() as host:
        yield host


@pytest.mark.parametrize(
    ("stdin", "seen"),
    [
        ("gr\u00fc\u00dfe", "gr\u00fc\u00dfe\n".encode()),
        ("two\nlines\n", b"two\nlines\n"),
        (EVERY_BYTE, EVERY_BYTE),
        (b"\0", b"\0"),
        (["a", "b\n", b"c"], b"a\nb\nc"),
        (("a", ""), b"a\n\n"),
        (io.StringIO("text\nfile"), b"text\nfile\n"),
        (io.BytesIO(EVERY_BYTE), EVERY_BYTE),
        (None, b""),
        ("", b""),
    ],
    ids=lambda value: None if isinstance(value, bytes) else type(value).__name__,
)
def test_stdin_of_each_kind_is_what_the_command_reads(stdin, seen, host):
    assert succeeded(host.run_shell_command("cat", _stdin=stdin)).stdout_bytes == seen


def test_stdin_of_a_generator_is_read_while_the_command_answers(host, tmp_path):
    """An item may depend on what the command has done with the one before, and is not kept back until the next."""

    def items():
        yield "first"
        deadline = time.monotonic() + 10
        while not (tmp_path / "first").exists():
            assert time.monotonic() < deadline
            gevent.sleep(0.01)
        yield b"second"

    output = succeeded(host.run_shell_command(f"read line; touch {tmp_path}/$line; cat", _stdin=items()))

    assert output.stdout == "second"


def test_stdin_of_a_file_and_of_a_pipe_is_all_of_it(host, tmp_path):
    content = os.urandom(3 * MIB + 1)
    (tmp_path / "file").write_bytes(content)

    with (tmp_path / "file").open("rb") as file:
        for _ in range(2):  # from its beginning each time, as for files.put
            assert succeeded(host.run_shell_command("cat", _stdin=file)).stdout_bytes == content
    with subprocess.Popen(["cat", tmp_path / "file"], stdout=subprocess.PIPE) as process:
        assert succeeded(host.run_shell_command("cat", _stdin=process.stdout)).stdout_bytes == content


def test_stdin_of_64_mib_comes_back_through_both_streams(host):
    """Input and output flow at the same time, whichever of them is slower."""
    content = os.urandom(MIB) * 32

    output = succeeded(host.run_shell_command("tee /dev/stderr", _stdin=content))

    assert output.stdout_bytes == content
    assert output.stderr_bytes == content


STREAM = """
import os, re, sys
from pathlib import Path
from tests.e2e.loopback import connected, succeeded

def mib(pid, name):
    return int(re.search(name + r":\\s+(\\d+)", Path(f"/proc/{pid}/status").read_text())[1]) // 1024

def items(count):
    for number in range(count):
        yield b"%1048576d" % number

with connected() as host:
    (agent,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    succeeded(host.run_shell_command("cat > /dev/null", _stdin=items(16)))
    before = [mib(pid, "VmRSS") for pid in ("self", agent)]
    for pid in ("self", agent):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    if sys.argv[1] == "generator":
        source = items(int(sys.argv[2]))
    else:
        source = open(sys.argv[1], "rb")
    print(succeeded(host.run_shell_command("sha256sum", _stdin=source)).stdout.split()[0])
    print(*(mib(pid, "VmHWM") - resident for pid, resident in zip(("self", agent), before)))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are measured with Linux's clear_refs")
@pytest.mark.parametrize("kind", ["generator", "file"])
def test_stdin_of_any_size_takes_no_more_memory_on_either_side(kind, tmp_path):
    source, size, whole = kind, LARGE_BYTES[kind], hashlib.sha256()
    if kind == "file":
        source = tmp_path / "large"
        with source.open("wb") as file:
            file.truncate(size)
    for number in range(size // MIB):
        whole.update(bytes(MIB) if kind == "file" else b"%1048576d" % number)

    done = subprocess.run(
        [sys.executable, "-c", STREAM, source, str(size // MIB)],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    digest, growth = done.stdout.splitlines()
    assert digest == whole.hexdigest()
    assert max(map(int, growth.split())) < GROWTH_MAX_MIB, growth


class Endless:
    """Chunks for ever; remembers how many were taken."""

    taken = 0

    def __iter__(self):
        while True:
            self.taken += 1
            yield b"x" * 65536


@pytest.mark.parametrize(
    ("script", "output"),
    [
        ("head -c 10", "x" * 10),
        ("exec <&-; sleep 0.3; echo closed", "closed"),
        ("sleep 0.3; echo never read", "never read"),
        ("sleep 0.3 >&- 2>&-", ""),
        ("true", ""),
        ("sleep 2 & echo its child has the input", "its child has the input"),
    ],
)
def test_stdin_that_is_not_wanted_keeps_nobody(script, output, host):
    """The command ends by itself, at its own time, and what it did not read is not sent for ever."""
    source = Endless()
    started = time.monotonic()

    assert succeeded(host.run_shell_command(script, _stdin=source)).stdout == output

    assert time.monotonic() - started < PROMPT_SECONDS
    taken = source.taken
    assert succeeded(host.run_shell_command("echo next")).stdout == "next"
    assert source.taken == taken


def test_stdin_that_is_not_wanted_leaves_the_status_as_it_is(host):
    for status in (0, 1, 7):
        ends_with_status(host, f"exec <&-; exit {status}", status, _stdin=b"x" * 4 * MIB)


def test_stdin_that_cannot_be_made_is_an_error_and_ends_the_command(host, tmp_path):
    """A command must not take half of its input for all of it."""

    def items():
        yield "half"
        raise RuntimeError("the other half is missing")

    with pytest.raises(OSError, match="the other half is missing"):
        host.run_shell_command(f"cat && touch {tmp_path}/whole", _stdin=items())
    with pytest.raises(OSError, match="give str or bytes"):
        host.run_shell_command(f"cat && touch {tmp_path}/whole", _stdin=["half", 7])

    assert succeeded(host.run_shell_command("echo next")).stdout == "next"
    assert not (tmp_path / "whole").exists()


# As pyinfra calls it: first `sudo -H -n ...`, which must not ask, and then with -A and a program that answers.
SUDO = """#!/bin/sh
case " $* " in
    *" -n "*) echo "sudo: a password is required" >&2; exit 1;;
esac
while [ "$1" != sh ]; do shift; done
exec "$@"
"""


@pytest.fixture(scope="module")
def sudo_host(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sudo")
    (directory / "sudo").write_text(SUDO)
    (directory / "sudo").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
        with connected() as host:
            yield host


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("str", 10),
        ("str", 3 * MIB),
        ("bytes", 3 * MIB),
        ("list", 3 * MIB),
        ("generator", 10),
        ("generator", 3 * MIB),
        ("text file", 3 * MIB),
        ("pipe", 60_000),
    ],
)
def test_stdin_is_whole_when_sudo_asks_for_a_password(kind, size, sudo_host, monkeypatch):
    """The first run, which takes some of the input, ends at once; the second one gets all of it."""
    asked = []
    monkeypatch.setattr(util, "getpass", lambda prompt: asked.append(prompt) or "secret")
    sudo_host.connector_data.clear()  # where pyinfra keeps the password
    lines = [f"{number:09}\n" for number in range(size // 10)]
    content = "".join(lines)
    with contextlib.ExitStack() as stack:
        reading, writing = os.pipe()
        pipe = stack.enter_context(open(reading, "rb"))
        with open(writing, "wb") as writer:
            writer.write(content.encode()[:60_000])
        stdin = {
            "str": content,
            "bytes": content.encode(),
            "list": lines,
            "generator": (line for line in lines),
            "text file": io.StringIO(content),
            "pipe": pipe,
        }[kind]

        output = succeeded(sudo_host.run_shell_command("cat", _sudo=True, _stdin=stdin))

    assert len(asked) == 1
    assert output.stdout_bytes == content.encode()
