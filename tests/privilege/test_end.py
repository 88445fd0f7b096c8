"""A command that became another user, in a session of PAM's, ends with all that it started, and nothing else does."""

from __future__ import annotations

import itertools
import re
import time

import pytest

from tests.e2e.helpers import eventually
from tests.privilege.helpers import BOBS_PASSWORD, CAROLS_PASSWORD

# Besides the main process a child, one in a session of its own, and one that takes no notice of a hang-up.
TREE = (
    "cat /proc/self/cgroup; sleep {0} & setsid sleep {0} & sh -c 'trap \"\" HUP; sleep {0} & wait' &"
    " sleep 0.2; echo $(pgrep -cfx 'sleep {0}') sleepers; sleep {0}"
)

WAYS = {
    "plain": {},
    "sudo": {"_sudo": True, "_sudo_user": "bob"},
    "sudo login": {"_sudo": True, "_sudo_user": "bob", "_use_sudo_login": True},
    "su": {"_su_user": "bob"},
    "su login": {"_su_user": "bob", "_use_su_login": True},
    "su with a password": {"_su_user": "bob", "_su_password": BOBS_PASSWORD},
    "sudo with a password": {"_sudo": True, "_sudo_password": CAROLS_PASSWORD},
    "doas": {"_doas": True, "_doas_user": "bob"},
}
IN_SESSION = ("sudo login", "su", "su login", "su with a password")
"""Who leaves the agent's cgroup by pam_systemd."""

_numbers = itertools.count(1000)


def new_token():
    """Return seconds to sleep that no other process sleeps."""
    return f"{next(_numbers)}.125"


@pytest.fixture
def token():
    return new_token()


@pytest.fixture(scope="module")
def daemon(machine, roots):
    """A daemon that an earlier command of the same agent started."""
    token = new_token()
    assert roots.run(f"setsid sleep {token} > /dev/null 2>&1 < /dev/null & exit 0").succeeded
    yield token
    machine.container.run("pkill", "-f", f"sleep {token}")


def sleepers(machine, token):
    return [words for words in machine.living(token) if words == ["sleep", token]]


@pytest.fixture(scope="module")
def timed_out(machine, roots, daemon):
    """What came of a command of each kind whose time was over: its answer, and who lived on."""
    commands = {(way, get_pty): new_token() for way in WAYS for get_pty in (False, True)}
    started = time.monotonic()
    roots.start_at_once(
        *(
            (TREE.format(token), {"_timeout": 1, "_get_pty": get_pty, **WAYS[way]})
            for (way, get_pty), token in commands.items()
        )
    )
    answers = roots.driver.answers()
    assert time.monotonic() - started < 8
    return {
        kind: (answer, sleepers(machine, token))
        for (kind, token), answer in zip(commands.items(), answers, strict=True)
    }


@pytest.mark.parametrize("get_pty", [False, True], ids=["pipes", "terminal"])
@pytest.mark.parametrize("way", WAYS)
def test_timeout_ends_everything(timed_out, way, get_pty):
    answer, survivors = timed_out[way, get_pty]
    assert "TimeoutError" in answer.kind, answer
    assert "did not end within 1 s and was killed" in answer.error
    assert "3 sleepers" in answer.stdout
    assert survivors == []
    assert bool(re.search(r"/session-\w+\.scope", answer.stdout)) == (way in IN_SESSION), answer.stdout


def test_timeout_ends_nothing_of_an_earlier_command(machine, timed_out, daemon):
    assert machine.living(daemon)


def test_cancel_ends_everything_and_nothing_of_an_earlier_command(machine, roots, daemon):
    """A gevent.Timeout of the user's own is a cancelled command; the target needs a moment to end it."""
    tokens = [new_token() for _ in WAYS]
    commands = [(TREE.format(token), way) for token, way in zip(tokens, WAYS.values(), strict=True)]
    roots.start_at_once(*commands, cancel_after=3)
    eventually(lambda: all(len(sleepers(machine, token)) == 4 for token in tokens), 3, "all trees")
    for answer in roots.driver.answers():
        assert "Timeout" in answer.kind
    eventually(lambda: not any(sleepers(machine, token) for token in tokens), 8, "the end of all trees")
    assert machine.living(daemon)


def test_descendants_have_time_to_end_in_good_order_and_no_more(machine, roots, token):
    """SIGTERM ends the shell at once. What it started may take its time, and dies of SIGKILL after five seconds."""
    orderly = "trap 'sleep 1; touch /tmp/in-order-$(id -un); exit' TERM; while :; do sleep 0.05; done"
    deaf = f"trap '' TERM; sleep {token}"
    tree = f'sh -c "{orderly}" & sh -c "{deaf}" & sleep {token}'.replace("$", "\\$")
    started = time.monotonic()
    roots.start_at_once(*((tree, {"_timeout": 1, **WAYS[way]}) for way in ("plain", "su")))

    for answer in roots.driver.answers():
        assert "and was killed" in answer.error
    assert 6 <= time.monotonic() - started < 9
    assert machine.container.path("/tmp/in-order-root").exists()
    assert machine.container.path("/tmp/in-order-bob").exists()
    assert machine.living(token) == []


def test_ordinary_agent_ends_what_sudo_and_su_let_it_end(machine, carols, token):
    """Both pass SIGTERM on to their command, which is another user's."""
    for arguments in (
        {"_sudo": True, "_sudo_password": CAROLS_PASSWORD},
        {"_su_user": "bob", "_su_password": BOBS_PASSWORD},
    ):
        answer = carols.run(f"exec sleep {token}", _timeout=1, **arguments)
        assert "TimeoutError" in answer.kind
        eventually(lambda: not machine.living(token), 8, "the end of the command")


OTHERS = {
    "sudo": {"_sudo": True, "_sudo_password": CAROLS_PASSWORD},
    "sudo to another user": {"_sudo": True, "_sudo_user": "bob", "_sudo_password": CAROLS_PASSWORD},
    "doas": {"_doas": True},
}


@pytest.fixture(scope="module")
def ended_by_carol(machine, carols):
    """What an ordinary user's agent left of commands of each kind, and of one of the same kind that went on."""
    tokens, other = {(way, get_pty): new_token() for way in OTHERS for get_pty in (False, True)}, new_token()
    daemon = f"setsid sleep {other} >/dev/null 2>&1 </dev/null & exit 0"
    assert carols.run(daemon, **OTHERS["sudo"]).succeeded
    carols.start_at_once(
        *(
            (TREE.format(token), {"_timeout": 1, "_get_pty": get_pty, **OTHERS[way]})
            for (way, get_pty), token in tokens.items()
        )
    )
    answers = carols.driver.answers()
    yield {
        kind: (answer, sleepers(machine, token), sleepers(machine, other))
        for (kind, token), answer in zip(tokens.items(), answers, strict=True)
    }
    machine.container.run("pkill", "-f", f"sleep {other}")


@pytest.mark.parametrize("get_pty", [False, True], ids=["pipes", "terminal"])
@pytest.mark.parametrize("way", OTHERS)
def test_ordinary_agent_ends_all_that_others_run_in_its_cgroup(ended_by_carol, way, get_pty):
    """It may signal none of them; cgroup.kill does not ask."""
    answer, survivors, others = ended_by_carol[way, get_pty]
    assert "TimeoutError" in answer.kind, answer
    assert "3 sleepers" in answer.stdout
    assert "/agent/command-" in answer.stdout
    assert survivors == []
    assert len(others) == 1


def test_ordinary_agent_leaves_no_cgroup_of_ended_commands(machine, carols, ended_by_carol):
    """Besides that of the daemon which lives on, and those that wait for the next command."""
    place = f"/sys/fs/cgroup/system.slice/{carols.unit}.service"
    count = f'grep -l "populated 1" {place}/end/cgroup.events {place}/agent/*/cgroup.events | wc -l'
    eventually(lambda: machine.container.run("sh", "-c", count).stdout.strip() == "1", 8, "one populated cgroup")


def test_ordinary_agent_does_not_claim_to_have_killed_what_it_may_not(machine, carols, token):
    """A session that su opens is a cgroup which is not the agent's."""
    started = time.monotonic()
    answer = carols.run(f"setsid sleep {token} & sleep {token}", _timeout=1, _su_user="bob", _su_password=BOBS_PASSWORD)

    assert answer.error.endswith(": carol, who runs the agent, may have been unable to kill all that another user runs")
    assert machine.living(token)
    assert time.monotonic() - started < 10
    machine.container.run("pkill", "-f", f"sleep {token}")
