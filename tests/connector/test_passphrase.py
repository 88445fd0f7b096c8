"""Secret keys under a passphrase."""

from __future__ import annotations

import base64
import os
import struct
import subprocess
import sys
import time

import gevent
import pytest

from pyinfra_agent_connector import _passphrase
from pyinfra_agent_connector._passphrase import (
    ENCRYPTED_AUTHORITY_PREFIX,
    ENCRYPTED_KEY_PREFIX,
    PassphraseError,
    WrongPassphrase,
    open_with_passphrase,
    seal,
    unseal,
)
from pyinfra_agent_protocol import KeyFormatError

SECRET = bytes(range(32))


@pytest.fixture
def cheap(monkeypatch):
    """Spend no half second where it is not the point."""
    monkeypatch.setattr(_passphrase, "ARGON2_PASSES", 1)
    monkeypatch.setattr(_passphrase, "ARGON2_MEMORY_KIB", 8)


@pytest.fixture(scope="module")
def line():
    return seal(SECRET, "corréct horse", ENCRYPTED_KEY_PREFIX, "ada@box")


def test_sealed_key_is_opened_by_its_passphrase_alone(line):
    assert line.startswith("pyinfra-agent-encrypted-key ")
    assert line.endswith(" ada@box")
    assert unseal(line, "corréct horse", ENCRYPTED_KEY_PREFIX) == SECRET
    with pytest.raises(WrongPassphrase):
        unseal(line, "correct horse", ENCRYPTED_KEY_PREFIX)


def test_same_key_and_passphrase_give_another_line_each_time(cheap):
    assert len({seal(SECRET, "x", ENCRYPTED_KEY_PREFIX) for _ in range(3)}) == 3


def test_sealed_key_says_how_hard_it_is_to_guess(line):
    data = base64.b64decode(line.split()[1])
    assert struct.unpack(">II", data[16:24]) == (3, 256 * 1024)


def test_sealed_authority_does_not_pass_for_a_key(cheap):
    """The prefix is in what the box is locked with."""
    sealed = seal(SECRET, "x", ENCRYPTED_AUTHORITY_PREFIX)
    renamed = sealed.replace(ENCRYPTED_AUTHORITY_PREFIX, ENCRYPTED_KEY_PREFIX)
    with pytest.raises(WrongPassphrase):
        unseal(renamed, "x", ENCRYPTED_KEY_PREFIX)
    with pytest.raises(KeyFormatError):
        unseal(sealed, "x", ENCRYPTED_KEY_PREFIX)


@pytest.mark.parametrize("limits", [(0, 64), (13, 64), (2**32 - 1, 64), (1, 7), (1, 1025 * 1024), (1, 2**32 - 1)])
def test_line_that_asks_for_too_much_is_refused_before_any_work(limits, cheap, monkeypatch):
    """A file may not take all memory, nor all day."""
    data = bytearray(base64.b64decode(seal(SECRET, "x", ENCRYPTED_KEY_PREFIX).split()[1]))
    data[16:24] = struct.pack(">II", *limits)
    monkeypatch.setattr(_passphrase, "_derive", None)
    with pytest.raises(KeyFormatError, match="are allowed"):
        unseal(f"{ENCRYPTED_KEY_PREFIX} {base64.b64encode(data).decode()}", "x", ENCRYPTED_KEY_PREFIX)


@pytest.mark.parametrize("at", [0, 17, 30, 60, 95])
def test_line_with_one_bit_changed_does_not_open(at, cheap):
    data = bytearray(base64.b64decode(seal(SECRET, "x", ENCRYPTED_KEY_PREFIX).split()[1]))
    data[at] ^= 1
    with pytest.raises((WrongPassphrase, KeyFormatError)):
        unseal(f"{ENCRYPTED_KEY_PREFIX} {base64.b64encode(data).decode()}", "x", ENCRYPTED_KEY_PREFIX)


@pytest.mark.parametrize("text", ["", "nonsense", ENCRYPTED_KEY_PREFIX, f"{ENCRYPTED_KEY_PREFIX} !", "x " * 3])
def test_line_that_is_none_is_refused(text):
    with pytest.raises(KeyFormatError):
        unseal(text, "x", ENCRYPTED_KEY_PREFIX)


def test_other_greenlets_run_while_a_key_is_opened(line):
    """The half second is spent in a thread: no gap between two ticks is near it."""
    gaps = []
    is_over = False

    def tick():
        last = time.perf_counter()
        while not is_over:
            gevent.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    ticker = gevent.spawn(tick)
    gevent.sleep(0)
    began = time.perf_counter()
    unseal(line, "corréct horse", ENCRYPTED_KEY_PREFIX)
    took = time.perf_counter() - began
    is_over = True
    ticker.join()
    assert took > 0.05
    assert max(gaps) < took / 2


# --- where the passphrase comes from ---


@pytest.fixture
def sealed(cheap, monkeypatch):
    monkeypatch.delenv("PYINFRA_AGENT_PASSPHRASE", raising=False)
    monkeypatch.delenv("PYINFRA_AGENT_PASSPHRASE_FILE", raising=False)
    return seal(SECRET, "secret", ENCRYPTED_KEY_PREFIX)


def opened(sealed):
    return open_with_passphrase(sealed, ENCRYPTED_KEY_PREFIX, "the key")


def test_passphrase_comes_from_the_environment(sealed, monkeypatch):
    monkeypatch.setenv("PYINFRA_AGENT_PASSPHRASE", "secret")
    assert opened(sealed) == (SECRET, "secret")


def test_passphrase_comes_from_the_first_line_of_a_file(sealed, monkeypatch, tmp_path):
    path = tmp_path / "passphrase"
    path.write_text("secret\r\nmore\n")
    path.chmod(0o600)
    monkeypatch.setenv("PYINFRA_AGENT_PASSPHRASE_FILE", str(path))
    assert opened(sealed) == (SECRET, "secret")


def test_passphrase_file_that_others_can_read_or_that_is_missing_is_refused(sealed, monkeypatch, tmp_path):
    path = tmp_path / "passphrase"
    monkeypatch.setenv("PYINFRA_AGENT_PASSPHRASE_FILE", str(path))
    with pytest.raises(PassphraseError, match="not there"):
        opened(sealed)
    path.write_text("secret\n")
    path.chmod(0o640)
    with pytest.raises(PassphraseError, match=f"chmod 600 {path}"):
        opened(sealed)


def test_wrong_passphrase_of_the_environment_is_tried_once(sealed, monkeypatch):
    """Two hundred hosts do not wait half a second each, one behind the other, to learn the same."""
    tries = []
    derive = _passphrase._derive
    monkeypatch.setattr(_passphrase, "_derive", lambda *arguments: tries.append(1) or derive(*arguments))
    monkeypatch.setenv("PYINFRA_AGENT_PASSPHRASE", "guess")
    jobs = [gevent.spawn(opened, sealed) for _ in range(20)]
    gevent.joinall(jobs)
    assert {str(job.exception) for job in jobs} == {
        "the passphrase of the key is not the one in $PYINFRA_AGENT_PASSPHRASE"
    }
    assert len(tries) == 1
    monkeypatch.setenv("PYINFRA_AGENT_PASSPHRASE", "secret")
    assert opened(sealed)[0] == SECRET


def test_terminal_is_asked_once_for_all_who_wait(sealed, monkeypatch):
    asked = []
    monkeypatch.setattr(_passphrase, "_ask", lambda prompt, what: asked.append(prompt) or "secret")
    jobs = [gevent.spawn(opened, sealed) for _ in range(20)]
    gevent.joinall(jobs, raise_error=True)
    assert asked == ["Passphrase of the key: "]


def test_terminal_is_asked_three_times_at_most(sealed, monkeypatch, capsys):
    answers = ["one", "two", "secret"]
    monkeypatch.setattr(_passphrase, "_ask", lambda prompt, what: answers.pop(0))
    assert opened(sealed)[0] == SECRET
    assert capsys.readouterr().err == "That is not the passphrase: try again.\n" * 2
    answers += ["one", "two", "three", "secret"]
    again = seal(SECRET, "secret", ENCRYPTED_KEY_PREFIX)
    for _ in range(2):
        with pytest.raises(WrongPassphrase, match="was wrong 3 times"):
            opened(again)
    assert answers == ["secret"]


def test_process_without_a_terminal_says_what_to_set(sealed):
    """It neither waits nor reads standard input."""
    program = (
        "import sys; from pyinfra_agent_connector._passphrase import *\n"
        "try: open_with_passphrase(sys.argv[1], 'pyinfra-agent-encrypted-key', 'the key')\n"
        "except PassphraseError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, sealed],
        input="secret\n",
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=30,
        check=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYINFRA_AGENT_")},
    )
    assert "no terminal to ask for it: set $PYINFRA_AGENT_PASSPHRASE, or $PYINFRA_AGENT_PASSPHRASE_FILE" in done.stdout
    assert done.stderr == ""
