"""The known_agents file."""

from __future__ import annotations

import fcntl
import resource
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import gevent
import pytest

from pyinfra_agent_connector import _known
from pyinfra_agent_connector._known import KnownAgents, Pin, PinResult, UntrustedAgent
from pyinfra_agent_connector._names import BadAgentName
from pyinfra_agent_protocol.keys import KeyPair, fingerprint, format_public

if TYPE_CHECKING:
    from pathlib import Path

ONE, TWO = (KeyPair.generate().public for _ in range(2))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "known_agents"


def written(path: Path, text: str) -> KnownAgents:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return KnownAgents(path)


def test_lookup_without_a_file_finds_nothing_and_makes_nothing(path):
    """Looking does not create the file."""
    assert KnownAgents(path).lookup("web1:7963") is None
    assert not path.parent.exists()


def test_pin_makes_a_private_file_that_others_can_read_back(path):
    """The first pin makes directory 0700 and file 0600; another instance sees the pin."""
    assert KnownAgents(path).pin("web1:7963", ONE, "by\nada\x1b") is PinResult.PINNED
    assert path.read_text() == f"web1:7963 {format_public(ONE, 'by ada')}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert KnownAgents(path).lookup("web1:7963") == Pin(ONE, 1, "by ada")


def test_lookup_finds_every_spelling_of_a_name(path):
    """The file and the question may spell host and port differently."""
    known = written(path, f"# mine\n\nWEB1 {format_public(ONE)}\n[2001:DB8:0::1]:80\t{format_public(TWO)}  \n")
    assert known.lookup("web1:7963") == Pin(ONE, 3)
    assert known.lookup("web1.:7963") == Pin(ONE, 3)
    assert known.lookup("web1:80") is None
    assert known.lookup("[2001:db8::1]:80") == Pin(TWO, 4)
    assert list(known.pins()) == ["web1:7963", "[2001:db8::1]:80"]
    assert known.problems() == ()


def test_lookup_refuses_a_name_that_is_no_agent(path):
    """A selector cannot be looked up or pinned."""
    with pytest.raises(BadAgentName):
        KnownAgents(path).lookup("known")
    with pytest.raises(BadAgentName):
        KnownAgents(path).pin("10.0.0.0/8", ONE)


def test_lookup_sees_what_an_editor_changed(path):
    """A changed, replaced or removed file is read again."""
    known = written(path, f"web1:7963 {format_public(ONE)}\n")
    assert known.lookup("web1:7963") == Pin(ONE, 1)
    replacement = path.with_suffix(".new")
    replacement.write_text(f"\nweb1:7963 {format_public(TWO)}\n")
    replacement.replace(path)
    assert known.lookup("web1:7963") == Pin(TWO, 2)
    path.unlink()
    assert known.lookup("web1:7963") is None


def test_lookup_reads_an_unchanged_file_once(path, monkeypatch):
    """As long as the file is the same, it is not parsed again."""
    known = written(path, f"web1:7963 {format_public(ONE)}\n")
    assert known.lookup("web1:7963")
    monkeypatch.setattr(_known, "_parse", None)
    assert known.lookup("web1:7963") == Pin(ONE, 1)


def test_check_strict_refuses_an_unknown_agent_with_the_line_to_add(path):
    """Strict pins nothing, and its error holds a line that can be added as it stands."""
    known = KnownAgents(path)
    with pytest.raises(UntrustedAgent, match="strict") as caught:
        known.check("web1:7963", ONE, "strict")
    assert fingerprint(ONE) in str(caught.value)
    assert not path.exists()
    written(path, str(caught.value).rpartition("there: ")[2] + "\n")
    assert known.check("web1:7963", ONE, "strict") is PinResult.KNOWN


def test_check_accept_new_pins_at_first_and_knows_afterwards(path):
    """accept-new pins once."""
    known = KnownAgents(path)
    assert known.check("web1:7963", ONE, "accept-new", "first seen") is PinResult.PINNED
    assert known.check("web1:7963", ONE, "accept-new") is PinResult.KNOWN
    assert known.pin("web1:7963", ONE) is PinResult.KNOWN
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("policy", ["strict", "accept-new", "ca", "pinned"])
def test_check_refuses_a_changed_key_and_says_what_to_do(path, policy):
    """A changed key is refused by both policies, with both fingerprints, the file and the line."""
    known = written(path, f"# comment\nweb1:7963 {format_public(ONE)}\n")
    before = path.read_bytes()
    with pytest.raises(UntrustedAgent) as caught:
        known.check("web1:7963", TWO, policy)
    text = str(caught.value)
    assert "\n" not in text
    assert fingerprint(ONE) in text
    assert fingerprint(TWO) in text
    assert f"remove line 2 of {path}" in text
    assert f"pyinfra-agent trust remove --home {path.parent} web1:7963" in text
    assert path.read_bytes() == before


def test_check_refuses_an_unknown_policy(path):
    """A misspelt agent_trust is not taken for a lax one."""
    with pytest.raises(UntrustedAgent, match="strict, accept-new or ca"):
        KnownAgents(path).check("web1:7963", ONE, "acceptnew")


@pytest.mark.parametrize("key", [b"", b"short", bytes(32)])
def test_check_refuses_what_cannot_be_a_key(path, key):
    """A key of the wrong length or of low order is never pinned."""
    with pytest.raises(UntrustedAgent, match="nobody can have"):
        KnownAgents(path).check("web1:7963", key, "accept-new")
    assert not path.exists()


def test_broken_lines_are_reported_by_number_and_hide_no_others(path):
    """Each broken line has its own report; the lines around it count."""
    path.parent.mkdir()
    path.write_bytes(
        b"web1:7963\n"
        + f"web2:7963 {format_public(ONE)[:-6]}\n".encode()
        + f"we b3:7963 {format_public(ONE)}\n".encode()
        + b"\xff\xfe:x\x00 rubbish\n"
        + f"web4:7963 {format_public(ONE)}\n".encode()
        + f"web4:7963 {format_public(TWO)}\n".encode()
        + b"known "
        + format_public(ONE).encode()
    )
    known = KnownAgents(path)
    assert known.pins() == {"web4:7963": Pin(ONE, 5)}
    problems = known.problems()
    assert [problem.split(" of ")[0] for problem in problems] == [f"line {number}" for number in (1, 2, 3, 4, 6, 7)]
    assert all(str(path) in problem and problem.isprintable() for problem in problems)


def test_check_refuses_an_agent_whose_line_is_damaged(path):
    """Damage to a pin does not turn a known agent into a new one."""
    known = written(path, f"web1:7963 {format_public(ONE)[:-4]}\n")
    with pytest.raises(UntrustedAgent, match="refused until its pin can be read: line 1"):
        known.check("web1:7963", TWO, "accept-new")
    assert known.check("web2:7963", TWO, "accept-new") is PinResult.PINNED


def test_pin_completes_a_last_line_without_newline(path):
    """A file that ends within a line keeps that line whole."""
    known = written(path, f"web1:7963 {format_public(ONE)}")
    known.pin("web2:7963", TWO)
    assert known.pins() == {"web1:7963": Pin(ONE, 1), "web2:7963": Pin(TWO, 2)}


def test_pin_keeps_a_link_to_the_file(path, tmp_path):
    """A known_agents that is a symbolic link stays one."""
    real = tmp_path / "dotfiles"
    real.write_text("")
    path.parent.mkdir()
    path.symlink_to(real)
    KnownAgents(path).pin("web1:7963", ONE)
    assert path.is_symlink()
    assert "web1:7963" in real.read_text()


def test_pin_that_does_not_fit_on_the_disk_leaves_no_part_of_itself(path):
    """An agent that could not be pinned is not trusted, and the file is as it was."""
    known = written(path, f"web1:7963 {format_public(ONE)}\n")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(UntrustedAgent, match=r"web2:7963 cannot be pinned in .*known_agents: the disk is full"):
            known.pin("web2:7963", TWO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert known.lookup("web2:7963") is None


def test_unreadable_file_is_not_an_empty_one(path):
    """If the pins cannot be read, nobody is a new agent."""
    path.mkdir(parents=True)
    with pytest.raises(UntrustedAgent, match="cannot be read"):
        KnownAgents(path).check("web1:7963", ONE, "accept-new")


def test_pin_gives_up_on_a_lock_that_is_never_released(path, monkeypatch):
    """Another process that keeps the lock stops one host with an error, and not every greenlet."""
    monkeypatch.setattr(_known, "LOCK_TIMEOUT_SECONDS", 0.05)
    path.parent.mkdir()
    ticks = []

    def tick() -> None:
        while True:
            gevent.sleep(0.001)
            ticks.append(None)

    other = gevent.spawn(tick)
    try:
        with open(f"{path}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(UntrustedAgent, match="another process has held"):
                KnownAgents(path).pin("web1:7963", ONE)
    finally:
        other.kill()
    assert ticks
    assert KnownAgents(path).pin("web1:7963", ONE) is PinResult.PINNED


def test_greenlets_pin_two_hundred_agents_at_once(path):
    """Every one of many agents first seen at once is pinned, in whole lines."""
    known = KnownAgents(path)
    keys = {f"web{number}:7963": KeyPair.generate().public for number in range(200)}
    jobs = [gevent.spawn(known.check, name, key, "accept-new") for name, key in keys.items()]
    gevent.joinall(jobs, raise_error=True, timeout=60)
    assert {name: pin.key for name, pin in KnownAgents(path).pins().items()} == keys
    assert known.problems() == ()


def test_processes_that_see_different_keys_of_one_name_pin_one(path):
    """Of several first keys at the same moment one is pinned, and the rest are changed keys."""
    code = (
        "import sys, pathlib; from pyinfra_agent_connector._known import KnownAgents, UntrustedAgent\n"
        "known = KnownAgents(pathlib.Path(sys.argv[1])); sys.stdin.readline()\n"
        "for number in range(50):\n"
        "    try: print(known.check(f'web{number}:7963', bytes.fromhex(sys.argv[2]), 'accept-new').value)\n"
        "    except UntrustedAgent as error: print('changed' if 'has changed' in str(error) else error)\n"
    )
    keys = [KeyPair.generate().public for _ in range(3)]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), key.hex()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for key in keys
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    results = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert all(sorted(outcome) == ["changed", "changed", "pinned"] for outcome in zip(*results, strict=True))
    assert len(results[0]) == 50
    pins = KnownAgents(path).pins()
    for number in range(50):
        winner = next(key for key, result in zip(keys, results, strict=True) if result[number] == "pinned")
        assert pins[f"web{number}:7963"].key == winner


# --- removing ---


def test_remove_takes_an_agent_out_and_leaves_the_rest_as_it_was(path):
    """By any spelling of its name; comments, other agents and the file's mode stay."""
    known = written(path, f"# mine\nWEB1 {format_public(ONE)}\n\nweb2:7963 {format_public(TWO, 'second')}")
    path.chmod(0o640)
    assert known.remove("web1.") == ("web1:7963",)
    assert path.read_text() == f"# mine\n\nweb2:7963 {format_public(TWO, 'second')}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(known.pins()) == ["web2:7963"]


def test_remove_by_fingerprint_takes_out_every_agent_with_that_key(path):
    known = written(path, "".join(f"web{n}:7963 {format_public(key)}\n" for n, key in enumerate([ONE, TWO, ONE])))
    assert known.remove(fingerprint(ONE)) == ("web0:7963", "web2:7963")
    assert list(known.pins()) == ["web1:7963"]


@pytest.mark.parametrize("what", ["web9", "not a name", "aaaaa-bbbbb-ccccc-ddddd-eeeee", ""])
def test_remove_of_what_is_not_there_changes_nothing(path, what):
    known = written(path, f"web1:7963 {format_public(ONE)}\n")
    before = path.stat()
    assert known.remove(what) == ()
    assert path.read_text() == f"web1:7963 {format_public(ONE)}\n"
    assert before.st_mode == path.stat().st_mode


def test_remove_without_a_file_makes_none(path):
    assert KnownAgents(path).remove("web1") == ()
    assert not path.parent.exists()


def test_remove_takes_a_damaged_line_out(path):
    """What keeps an agent from being used can be mended with the same command."""
    known = written(path, f"web1:7963 {format_public(ONE)[:-4]}\n")
    assert known.remove("web1:7963") == ("web1:7963",)
    assert known.check("web1:7963", TWO, "accept-new") is PinResult.PINNED


def test_remove_keeps_a_link_to_the_file(path, tmp_path):
    real = tmp_path / "dotfiles"
    real.write_text(f"web1:7963 {format_public(ONE)}\n")
    path.parent.mkdir()
    path.symlink_to(real)
    KnownAgents(path).remove("web1")
    assert path.is_symlink()
    assert real.read_text() == ""


# --- rotated keys ---


def test_announced_next_key_takes_the_place_of_the_pin_once_it_is_shown(path):
    known = written(path, f"# mine\nweb1:7963 {format_public(ONE, 'front')}\nweb2:7963 {format_public(ONE)}\n")
    known.learn_next("web1:7963", ONE, TWO)
    assert known.next_pins() == {"web1:7963": Pin(TWO, 4)}
    assert known.check("web1:7963", ONE, "strict") is PinResult.KNOWN
    assert known.check("web1:7963", TWO, "strict") is PinResult.ROTATED
    assert path.read_text() == f"# mine\nweb1:7963 {format_public(TWO, 'front')}\nweb2:7963 {format_public(ONE)}\n"
    with pytest.raises(UntrustedAgent, match="has changed"):
        known.check("web1:7963", ONE, "accept-new")
    with pytest.raises(UntrustedAgent, match="has changed"):
        known.check("web2:7963", TWO, "accept-new")


def test_next_key_is_noted_only_from_the_agent_that_is_pinned(path):
    """Nobody else's word counts, and an agent that is not pinned has nothing to rotate."""
    known = written(path, f"web1:7963 {format_public(ONE)}\n")
    known.learn_next("web1:7963", TWO, KeyPair.generate().public)
    known.learn_next("web2:7963", ONE, TWO)
    known.learn_next("web1:7963", ONE, ONE)
    known.learn_next("web1:7963", ONE, b"")
    assert path.read_text() == f"web1:7963 {format_public(ONE)}\n"


def test_next_key_that_is_taken_back_or_changed_is_forgotten(path):
    three = KeyPair.generate().public
    known = written(path, f"web1:7963 {format_public(ONE)}\n")
    known.learn_next("web1:7963", ONE, TWO)
    known.learn_next("web1:7963", ONE, three)
    assert {name: pin.key for name, pin in known.next_pins().items()} == {"web1:7963": three}
    known.learn_next("web1:7963", ONE, b"")
    assert path.read_text() == f"web1:7963 {format_public(ONE)}\n"
    with pytest.raises(UntrustedAgent, match="has changed"):
        known.check("web1:7963", three, "accept-new")


def test_next_key_that_stays_the_same_is_not_written_again(path):
    known = written(path, f"web1:7963 {format_public(ONE)}\n")
    known.learn_next("web1:7963", ONE, TWO)
    before = path.stat().st_ino, path.stat().st_mtime_ns
    known.learn_next("web1:7963", ONE, TWO)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before


def test_greenlets_that_see_a_rotated_key_at_once_all_accept_it(path):
    known = written(path, f"web1:7963 {format_public(ONE)}\n@next web1:7963 {format_public(TWO)}\n")
    jobs = [gevent.spawn(known.check, "web1:7963", TWO, "strict") for _ in range(20)]
    gevent.joinall(jobs, raise_error=True, timeout=20)
    assert {job.value for job in jobs} <= {PinResult.ROTATED, PinResult.KNOWN}
    assert path.read_text() == f"web1:7963 {format_public(TWO)}\n"


# --- several processes ---

_PIN_MANY = """
import sys, pathlib
from pyinfra_agent_connector._known import KnownAgents
known = KnownAgents(pathlib.Path(sys.argv[1]))
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    known.check(f"{sys.argv[2]}-{number}:7963", bytes.fromhex(sys.argv[4]), "accept-new")
"""


def test_processes_that_pin_and_remove_at_once_lose_nothing(path):
    """Three processes see 70 new agents each while a fourth removes others: every line is whole, and there once."""
    gone = written(path, "".join(f"old-{number}:7963 {format_public(ONE)}\n" for number in range(40)))
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _PIN_MANY, str(path), f"p{racer}", "70", TWO.hex()], stdin=subprocess.PIPE, text=True
        )
        for racer in range(3)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    for number in range(40):
        assert gone.remove(f"old-{number}") == (f"old-{number}:7963",)
    assert [racer.wait(60) for racer in racers] == [0] * 3
    for racer in racers:
        racer.stdin.close()
    known = KnownAgents(path)
    assert known.problems() == ()
    assert sorted(known.pins()) == sorted(f"p{racer}-{number}:7963" for racer in range(3) for number in range(70))
    assert len(path.read_text().splitlines()) == 210


def test_pin_does_not_read_back_what_it_wrote_itself(path, monkeypatch):
    """So that ten thousand agents first seen at once cost no more than each its line."""
    known = written(path, f"web0:7963 {format_public(ONE)}\n")
    known.lookup("web0:7963")
    monkeypatch.setattr(_known, "_parse", None)
    for number in range(1, 50):
        known.check(f"web{number}:7963", TWO, "accept-new", "seen")
    assert known.lookup("web49:7963") == Pin(TWO, 50, "seen")
    monkeypatch.undo()
    assert KnownAgents(path).pins() == known.pins()
