"""Certificates between real agents and real controllers: one line on each side, and who is kept out."""

from __future__ import annotations

import pytest

from pyinfra_agent_connector._errors import NotAuthorized
from pyinfra_agent_connector._fleet import Fleet
from pyinfra_agent_connector._known import UntrustedAgent
from tests.e2e.helpers import AGENT, failed_with, run
from tests.trust_e2e.helpers import FleetKey, key_of, typed, visit

POLICIES = ["strict", "accept-new", "ca", "pinned"]


def test_one_line_on_each_side_lets_agent_and_controller_know_each_other(lab, fleet):
    """No key of one stands on the other, and none is left there."""
    agent, controller = lab.agent(), lab.controller()
    fleet.lets_in(agent)
    fleet.trusted_by(controller)
    fleet.certify(agent)
    fleet.certify_controller(controller, "--hours", "2")

    done = controller.pyinfra(agent.name, "exec", "--", "echo", "certified", agent_trust="ca")

    assert done.status == 0, done.text
    assert "] certified\n" in done.text
    assert not (controller.home / "known_agents").exists()
    assert "pyinfra-agent-key" not in (agent.state_dir / "authorized_controllers").read_text()


def test_uncertified_agent_is_refused_by_ca_with_the_line_that_helps(lab, fleet):
    controller = lab.controller()
    agent = lab.agent(controller)
    fleet.trusted_by(controller)
    name = f"{agent.host}:{agent.port}"

    failed_with(
        controller.pyinfra(agent.name, "exec", "--", "true", agent_trust="ca"),
        f"{name} shows no certificate",
        f"pyinfra-agent trust add {name} ",
    )

    failed = run(AGENT, "exec", "--trust", "ca", name, "--", "true", env=controller.environment)
    assert (failed.status, failed.stderr.count("\n")) == (255, 1)
    assert "shows no certificate" in failed.stderr

    typed("trust", "add", name, "--yes", env=controller.environment)
    assert controller.pyinfra(agent.name, "exec", "--", "true", agent_trust="ca").status == 0


def test_who_answers_first_without_a_certificate_is_believed_by_accept_new_alone(lab, fleet):
    """Somebody in the middle has a key of its own and leaves the certificate out: only that policy asks for none."""
    controller = lab.controller()
    agent = lab.agent(controller)
    fleet.trusted_by(controller)
    fleet.certify(agent)
    agent.stop()
    middle = lab.agent(controller, state="middle", listen=f"127.0.0.1:{agent.port}")
    pins = controller.home / "known_agents"

    before = middle.log.read_text()
    why = {"ca": "shows no certificate of those in", "strict": "agent_trust is strict", "pinned": "discovery"}
    for policy, reason in why.items():
        with pytest.raises(UntrustedAgent, match=reason):
            visit(middle, controller, policy)
    assert not pins.exists()
    assert "controller=" not in middle.log.read_text()[len(before) :]

    visit(middle, controller, "accept-new")
    assert pins.read_text().split()[1:3] == key_of(middle).split()[:2]

    # The right one is what is refused from then on, until somebody looks.
    middle.stop()
    agent = lab.agent(listen=f"127.0.0.1:{agent.port}")
    with pytest.raises(UntrustedAgent, match="has changed"):
        visit(agent, controller, "accept-new")
    typed("trust", "remove", f"{agent.host}:{agent.port}", env=controller.environment)
    visit(agent, controller, "ca")
    assert "127.0.0.1" not in pins.read_text()


@pytest.mark.parametrize("attack", ["another name", "a controller's", "another key's", "a stranger's", "revoked"])
def test_agent_with_a_certificate_that_is_not_for_it_learns_nothing_of_us(lab, fleet, attack):
    controller = lab.controller()
    agent = lab.agent(controller)
    fleet.trusted_by(controller)
    path = agent.state_dir / "certificate"
    if attack == "another name":
        fleet.certify(agent, "db1.example.com")
    elif attack == "a controller's":
        path.write_text(fleet.sign("--controller", agent.host, key_of(agent)))
    elif attack == "another key's":
        fleet.certify(agent, key=controller.identity())
    elif attack == "a stranger's":
        FleetKey(lab.directory / "other").certify(agent)
    else:
        fleet.certify(agent)
        fleet.revoke(Fleet(fleet.directory).ledger()[0].serial, controller.home)
    before = agent.log.read_text()
    # An agent does not show what is for another key, and a stranger's word is none: those are strangers themselves.
    policies = POLICIES if attack not in ("another key's", "a stranger's") else ["strict", "ca", "pinned"]

    for policy in policies:
        with pytest.raises(UntrustedAgent):
            visit(agent, controller, policy)

    assert not (controller.home / "known_agents").exists()
    assert "controller=" not in agent.log.read_text()[len(before) :]


def test_pin_beats_the_fleet_key(lab, fleet):
    """Whoever steals the fleet key cannot take the place of an agent that was pinned."""
    controller = lab.controller()
    agent = lab.agent(controller)
    visit(agent, controller, "accept-new")
    fleet.trusted_by(controller)
    agent.stop()
    imposter = lab.agent(controller, state="imposter", listen=f"127.0.0.1:{agent.port}")
    fleet.certify(imposter)

    for policy in POLICIES:
        with pytest.raises(UntrustedAgent, match="has changed"):
            visit(imposter, controller, policy)


def test_controller_whose_certificate_is_revoked_is_let_in_no_more(lab, fleet):
    controller = lab.controller()
    agent = lab.agent()
    fleet.lets_in(agent)
    fleet.certify_controller(controller)
    visit(agent, controller, "accept-new")
    fleet.revoke(Fleet(fleet.directory).ledger()[0].serial, agent.state_dir)
    with pytest.raises(NotAuthorized):
        visit(agent, controller)


def test_key_and_certificate_of_a_ci_job_come_from_its_environment(lab, fleet):
    """Nothing is written where the job runs but the pins that it makes."""
    agent, controller, job = lab.agent(), lab.controller(), lab.controller("ci")
    fleet.lets_in(agent)
    fleet.trusted_by(job)
    fleet.certify(agent)
    line = controller.identity()
    secrets = {
        "PYINFRA_AGENT_KEY": (controller.home / "identity").read_text(),
        "PYINFRA_AGENT_CERTIFICATE": fleet.sign("--controller", "ci", "--hours", "1", line),
    }

    done = run(
        *job._words(agent.name, ("exec", "--", "true"), {"agent_trust": "ca"}),
        cwd=job.directory,
        env=job.environment | secrets,
    )

    assert done.status == 0, done.text
    assert sorted(path.name for path in job.home.iterdir()) == ["authorities"]
