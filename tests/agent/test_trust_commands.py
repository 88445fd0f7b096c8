"""authorize, revoke and controllers: what they write, and what they say they give away."""

from __future__ import annotations

import os
import pwd

import pytest

from pyinfra_agent import cli
from pyinfra_agent_protocol.certificates import AuthorityKey, format_authority
from pyinfra_agent_protocol.keys import KeyPair, fingerprint, format_public


@pytest.fixture
def key():
    return KeyPair.generate().public


@pytest.fixture
def run(tmp_path, capsys):
    """Run a command; return its exit status and what it printed."""

    def call(command, *words):
        status = cli.main([command, "--state-dir", str(tmp_path), *words])
        return status, "".join(capsys.readouterr())

    return call


OTHER = next(account.pw_name for account in pwd.getpwall() if account.pw_uid not in (0, os.geteuid()))


@pytest.mark.parametrize(
    ("options", "written", "said"),
    [
        ([], "", "may now do everything this agent can"),
        (["--no-pty"], "no-pty ", "everything this agent can"),
        (["--no-put", "--from", "10.0.0.0/8,192.0.2.1"], 'from="10.0.0.0/8,192.0.2.1",no-put ', "is no boundary"),
        (["--user", OTHER, "--no-get"], f'user="{OTHER}",no-get ', f"what the user {OTHER} can, less no-get"),
        (["--no-exec", "--no-put", "--no-get"], "no-exec,no-put,no-get ", "neither run a command nor read or write"),
        (["--expires", "2099-01-01"], 'expires="2099-01-01" ', "everything"),
    ],
)
def test_authorize_writes_the_options_and_says_what_they_give_away(tmp_path, run, key, options, written, said):
    status, text = run("authorize", *options, format_public(key, "alice"))
    assert status == 0
    assert said in text
    assert text.count("\n") == 1
    assert (tmp_path / "authorized_controllers").read_text() == f"{written}{format_public(key, 'alice')}\n"


def test_authorize_of_an_authority_says_whom_it_lets_in(tmp_path, run):
    line = format_authority(AuthorityKey(os.urandom(32)).public, "fleet")
    status, text = run("authorize", "--authority", "--names", "ci-*", "--groups", "ops", line)
    assert (status, "every controller certified by" in text, "ci-*" in text) == (0, True, True)
    assert (tmp_path / "authorized_controllers").read_text() == f'cert-authority,names="ci-*",groups="ops" {line}\n'


@pytest.mark.parametrize(
    "words",
    [
        ["--names", "x"],
        ["--user", "no-such-user-here"],
        ["--from", "10.0.0.1/8"],
        ["--user", 'a" no-pty'],
        ["--expires", "soon"],
    ],
)
def test_authorize_with_options_that_mean_nothing_changes_nothing(tmp_path, run, key, words):
    status, text = run("authorize", *words, format_public(key))
    assert (status, text.count("\n")) == (1, 1)
    assert not (tmp_path / "authorized_controllers").exists()


@pytest.mark.parametrize("by", ["line", "fingerprint", "comment"])
def test_revoke_takes_the_line_out(tmp_path, run, key, by):
    other = KeyPair.generate().public
    for line in (format_public(key, "alice"), format_public(other, "bob")):
        run("authorize", line)
    wanted = {"line": format_public(key), "fingerprint": fingerprint(key), "comment": "alice"}[by]
    status, text = run("revoke", wanted)
    assert (status, fingerprint(key) in text) == (0, True)
    assert (tmp_path / "authorized_controllers").read_text() == f"{format_public(other, 'bob')}\n"
    assert not (tmp_path / "revoked").exists(), "nothing else could let it in"


def test_revoke_of_a_serial_or_of_a_key_that_a_certificate_could_let_in_is_remembered(tmp_path, run, key):
    run("authorize", "--authority", format_authority(AuthorityKey(os.urandom(32)).public))
    run("authorize", format_public(key, "alice"))
    assert run("revoke", "alice")[0] == 0
    assert run("revoke", "00000000000000ab")[0] == 0
    assert (tmp_path / "revoked").read_text() == f"{format_public(key, 'alice')}\n00000000000000ab\n"


def test_revoke_of_what_is_not_there_or_not_clear_changes_nothing(tmp_path, run, key):
    for public in (key, KeyPair.generate().public):
        run("authorize", format_public(public, "twin"))
    before = (tmp_path / "authorized_controllers").read_text()
    for wanted, said in (("carol", "no line has"), ("twin", "by its fingerprint"), ("", "whom?")):
        status, text = run("revoke", wanted)
        assert (status, said in text) == (1, True)
    assert (tmp_path / "authorized_controllers").read_text() == before


def test_controllers_lists_lines_and_reports_broken_ones(tmp_path, run, key):
    run("authorize", "--no-pty", format_public(key, "alice"))
    assert run("controllers") == (0, f"{fingerprint(key)}  key  no-pty  alice\n")
    with (tmp_path / "authorized_controllers").open("a") as file:
        file.write("nonsense\n")
    status, text = run("controllers")
    assert (status, "line 2 admits nobody" in text, fingerprint(key) in text) == (1, True, True)
