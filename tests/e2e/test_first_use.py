"""From nothing to a first command: identity, authorize, connect; and the pin that is left of it."""

from __future__ import annotations

import os
import re
import shlex
import stat

import pytest

from tests.e2e.helpers import AGENT, clean_environment, run

# Root's state directory has a fixed place, which a test must not touch: the shell gets a /var/lib of its own.
IN_PLACE_OF_THE_MACHINE = """
mount --make-rprivate / && mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/pyinfra-agent &&
mount --bind "$STATE" /var/lib/pyinfra-agent && exec sh -c "$LINE"
"""


def permissions(path):
    return stat.S_IMODE(path.stat().st_mode)


def paste(line, state_dir):
    """Run *line* in a shell on the target, whose state directory is where it is by default."""
    if os.geteuid() != 0:
        return run("sh", "-c", line, env=clean_environment(XDG_STATE_HOME=str(state_dir.parent)))
    if run("unshare", "--mount", "true").status != 0:
        pytest.skip("a mount namespace is not permitted here")
    environment = clean_environment(STATE=str(state_dir), LINE=line)
    return run("unshare", "--mount", "sh", "-c", IN_PLACE_OF_THE_MACHINE, env=environment)


def test_identity_authorize_connect_pins_the_agent_once(lab):
    controller = lab.controller()
    line = controller.identity()
    assert re.fullmatch(r"pyinfra-agent-key [A-Za-z0-9+/]{43}= .+@.+", line)
    assert controller.identity() == line
    agent = lab.agent()
    agent.authorize(controller)
    agent.authorize(controller)
    assert (agent.state_dir / "authorized_controllers").read_text().count("\n") == 1
    known_agents = controller.home / "known_agents"
    assert not known_agents.exists()

    first = controller.pyinfra(agent.name, "exec", "--", "echo", "first")

    assert first.status == 0, first.text
    assert "] first\n" in first.text
    pinned = known_agents.read_text()
    key = run(AGENT, "key", "--state-dir", agent.state_dir).stdout.strip()
    assert pinned == f"127.0.0.1:{agent.port} {key}\n"
    assert permissions(known_agents) == permissions(controller.home / "identity") == 0o600
    assert permissions(controller.home) == 0o700
    assert permissions(agent.state_dir / "key") == permissions(agent.state_dir / "authorized_controllers") == 0o600

    assert controller.pyinfra(agent.name, "exec", "--", "true", agent_trust="strict").status == 0
    assert known_agents.read_text() == pinned


@pytest.mark.parametrize(
    "user", ["deploy", "o'$(touch injected)'brien", "$(touch injected) `id`"], ids=["plain", "quote", "shell syntax"]
)
def test_line_that_a_refused_controller_is_shown_lets_it_in_when_it_is_pasted(user, lab):
    controller = lab.controller()
    agent = lab.agent(state="pyinfra-agent")
    controller_environment = controller.environment | {"LOGNAME": user}
    refused = run(
        *controller._words(agent.name, ("exec", "--", "true"), {}), cwd=controller.directory, env=controller_environment
    )
    assert refused.status != 0
    (said,) = refused.said
    line = said.partition("on that machine run: ")[2]
    assert len(shlex.split(line)) in (3, 4)

    pasted = paste(f"cd {shlex.quote(str(lab.directory))}; {line}", agent.state_dir)

    assert pasted.status == 0, pasted.text
    assert "may now do everything" in pasted.stdout
    assert not (lab.directory / "injected").exists()
    assert controller.pyinfra(agent.name, "exec", "--", "true").status == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "pyinfra-agent-key"),
        ("pyinfra-agent-key AAAA", "copy the whole line"),
        ("", "pyinfra-agent-key"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ user@host", "pyinfra-agent-key"),
        (f"pyinfra-agent-key {'A' * 43}= zero", "pyinfra-agent"),
    ],
    ids=["words", "short", "empty", "ssh key", "zero"],
)
def test_authorize_of_what_is_no_key_says_so_and_writes_nothing(line, said, tmp_path):
    done = run(AGENT, "authorize", "--state-dir", tmp_path / "state", line)

    assert done.status == 1
    assert "Traceback" not in done.text
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert not (tmp_path / "state" / "authorized_controllers").exists()
