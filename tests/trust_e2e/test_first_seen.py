"""Two hundred agents that nobody knew, first seen at once, by several processes."""

from __future__ import annotations

import subprocess
import sys

from pyinfra_agent_connector._known import KnownAgents
from pyinfra_agent_connector._passphrase import ENCRYPTED_KEY_PREFIX, seal
from pyinfra_agent_protocol.keys import KeyPair, format_public
from tests.e2e.helpers import AGENT, clean_environment, run
from tests.terminals import job

HOSTS = 200

_MEET = """
import sys, pathlib, gevent
from pyinfra_agent_connector._trust import AgentTrust
from pyinfra_agent_connector._known import UntrustedAgent
home, keys = pathlib.Path(sys.argv[1]), [bytes.fromhex(line.strip()) for line in open(sys.argv[2])]
def meet(number, key):
    try:
        AgentTrust(home, f"web{number}", 7963, "accept-new", None).check(key, b"")
    except UntrustedAgent as error:
        return str(error)
sys.stdin.readline()
jobs = [gevent.spawn(meet, number, key) for number, key in enumerate(keys)]
gevent.joinall(jobs)
print(sum(job.value is None for job in jobs))
"""


def meet_at_once(home, *files):
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _MEET, str(home), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for file in files
    ]
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=60) for process in running]
    assert [stderr for _, stderr in ended] == [""] * len(files)
    return [int(stdout) for stdout, _ in ended]


def test_processes_that_meet_the_same_agents_at_once_pin_each_once(tmp_path):
    keys = [KeyPair.generate().public for _ in range(HOSTS)]
    (tmp_path / "keys").write_text("".join(f"{key.hex()}\n" for key in keys))
    assert meet_at_once(tmp_path / "home", *[tmp_path / "keys"] * 3) == [HOSTS] * 3
    known = KnownAgents(tmp_path / "home" / "known_agents")
    assert known.problems() == ()
    assert {name: pin.key for name, pin in known.pins().items()} == {
        f"web{number}:7963": key for number, key in enumerate(keys)
    }
    assert len(known.path.read_text().splitlines()) == HOSTS


def test_of_processes_that_are_shown_different_keys_one_wins_each_name(tmp_path):
    """Somebody between us and half of the answers cannot have a name pinned twice."""
    for name in ("ours", "theirs"):
        keys = [KeyPair.generate().public for _ in range(HOSTS)]
        (tmp_path / name).write_text("".join(f"{key.hex()}\n" for key in keys))
    assert sum(meet_at_once(tmp_path / "home", tmp_path / "ours", tmp_path / "theirs")) == HOSTS
    known = KnownAgents(tmp_path / "home" / "known_agents")
    assert known.problems() == ()
    assert len(known.pins()) == HOSTS


# --- a passphrase at a real terminal ---


def test_passphrase_is_asked_for_at_the_terminal_and_not_shown(tmp_path):
    pair = KeyPair.generate()
    path = tmp_path / "identity"
    path.write_text(f"{seal(pair.secret, 'open sesame', ENCRYPTED_KEY_PREFIX)}\n")
    path.chmod(0o600)
    environment = clean_environment(PYINFRA_AGENT_HOME=str(tmp_path))
    with job(AGENT, "identity", env=environment) as process:
        process.shows(f"Passphrase of the controller's key {path}: ".encode())
        process.type(b"open says me\n")
        process.shows(b"That is not the passphrase: try again.")
        process.shows(b": ")
        process.type(b"open sesame\n")
        assert process.status() == 0
        assert format_public(pair.public).encode() in process.shown
        assert b"open s" not in process.shown
        assert process.is_restored
    without = run(AGENT, "identity", env=environment, start_new_session=True)
    assert without.status == 1
    assert without.stderr.count("\n") == 1
    assert "set $PYINFRA_AGENT_PASSPHRASE" in without.stderr
