"""Passwords are seen by sudo and su, and by nobody and nothing else."""

from __future__ import annotations

import pytest

from tests.privilege.helpers import BOBS_PASSWORD, CAROLS_PASSWORD, Watcher

WRONG = "wrong-GUESS-of-a-password"
HIDDEN = {"hidden": {"TOKEN": "token-in-the-environment"}}
# "$ecret": of bob's password, however a shell quotes the rest.
SECRETS = (CAROLS_PASSWORD, BOBS_PASSWORD, WRONG, "$ecret", "token-in-the-environment")
# A moment each, so that whoever looks at the process list sees the commands.
COMMAND = "env | sed 's/^TOKEN=.*/TOKEN is set/'; sleep 0.2"

AS_OTHERS = [
    {"_sudo": True, "_sudo_password": CAROLS_PASSWORD},
    {"_sudo": True, "_sudo_password": CAROLS_PASSWORD, "_sudo_user": "bob", "_use_sudo_login": True},
    {"_su_user": "bob", "_su_password": BOBS_PASSWORD},
    {"_su_user": "bob", "_su_password": BOBS_PASSWORD, "_preserve_su_env": True, "_su_shell": "sh"},
    {"_su_user": "bob", "_su_password": BOBS_PASSWORD, "_get_pty": True},
    HIDDEN,
    HIDDEN | {"_sudo": True, "_sudo_password": CAROLS_PASSWORD},
    HIDDEN | {"_doas": True, "_doas_user": "bob", "_shell_executable": "bash"},
]
FAILING = [
    {"_sudo": True, "_sudo_password": WRONG},
    {"_su_user": "bob", "_su_password": WRONG},
    {"_sudo": True, "_sudo_password": CAROLS_PASSWORD, "_chdir": "/no/such"},
    {"_sudo": True, "_sudo_password": CAROLS_PASSWORD, "_shell_executable": "no-such-shell"},
    {"_sudo": True, "_sudo_password": CAROLS_PASSWORD, "_timeout": 0.5},
    {"_su_user": "bob", "_su_password": BOBS_PASSWORD, "_timeout": 0.5},
]


@pytest.fixture(scope="module")
def asked(carols):
    """Everything that a battery of requests with passwords let be seen, by where it was seen."""
    with Watcher() as watcher:
        carols.start_at_once(
            *((COMMAND, arguments) for arguments in AS_OTHERS), *(("exec sleep 10", arguments) for arguments in FAILING)
        )
        answers = carols.driver.answers()
        for arguments in (AS_OTHERS[0], AS_OTHERS[2]):
            assert carols.put("content", "/tmp/of-another", **arguments).succeeded
            assert not carols.get("/no/such/file", **arguments).succeeded
            carols.run("rm -f /tmp/of-another", **arguments)
    assert [answer.succeeded for answer in answers] == [True] * len(AS_OTHERS) + [False] * len(FAILING), answers
    return {
        "answers": "\n".join(answer.text for answer in answers),
        "log of the agent": carols.log,
        "log of pyinfra": carols.driver.log.read_text(),
        "process list": b"\n".join(watcher.seen).replace(b"\0", b" ").decode(errors="replace"),
    }


@pytest.mark.parametrize(
    ("place", "holds"),
    [
        # Each place is one that did see the requests.
        ("answers", "PATH="),
        ("answers", "TOKEN is set"),
        ("log of the agent", "request=exec"),
        ("log of pyinfra", "Running command on"),
        ("process list", "sudo -H -A -k"),
        ("process list", "su bob -c"),
    ],
)
def test_no_password_is_seen(asked, place, holds):
    assert holds in asked[place]
    for secret in SECRETS:
        assert secret not in asked[place]


def test_what_stays_of_an_askpass_script_holds_no_password(carols, asked):
    scripts = carols.run("cat /tmp/pyinfra-sudo-askpass-*").stdout
    assert "PYINFRA_S" in scripts
    for secret in SECRETS:
        assert secret not in scripts
