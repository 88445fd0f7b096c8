"""Keys that are changed while they are used: at no moment is anybody locked out."""

from __future__ import annotations

import pytest

from pyinfra_agent_connector._errors import NotAuthorized
from pyinfra_agent_connector._known import KnownAgents, UntrustedAgent
from pyinfra_agent_protocol.keys import fingerprint, parse_public
from tests.e2e.helpers import AGENT, run
from tests.trust_e2e.helpers import FleetKey, key_of, typed, visit


def restarted(lab, agent, *controllers):
    agent.stop()
    return lab.agent(*controllers, state=agent.state_dir.name, listen=f"127.0.0.1:{agent.port}")


def test_agent_that_is_pinned_gets_a_new_key(lab):
    """Each controller gets to know it by the old one, and takes it over when it is shown."""
    controller, absent = lab.controller(), lab.controller("absent")
    agent = lab.agent(controller, absent)
    name = f"{agent.host}:{agent.port}"
    for one in (controller, absent):
        visit(agent, one, "accept-new")
    old = key_of(agent)
    known = KnownAgents(controller.home / "known_agents")

    new = typed("key", "--rotate", "--state-dir", agent.state_dir)
    assert typed("key", "--rotate", "--state-dir", agent.state_dir) == new
    visit(agent, controller)
    assert known.next_pins()[name].key == parse_public(new).key
    typed("key", "--commit", "--state-dir", agent.state_dir)
    visit(agent, controller)
    assert known.next_pins()[name].key == parse_public(new).key, "until it starts again the old one is used"
    agent = restarted(lab, agent)
    visit(agent, controller)

    assert key_of(agent) == new != old
    assert known.pins()[name].key == parse_public(new).key
    assert known.next_pins() == {}
    visit(agent, controller)
    with pytest.raises(UntrustedAgent, match="has changed"):
        visit(agent, absent)  # which was never there meanwhile


def test_agent_that_is_certified_gets_a_new_key(lab, fleet):
    controller = lab.controller()
    agent = lab.agent(controller)
    fleet.trusted_by(controller)
    fleet.certify(agent)
    visit(agent, controller, "ca")

    new = typed("key", "--rotate", "--state-dir", agent.state_dir)
    refused = run(AGENT, "key", "--commit", "--state-dir", agent.state_dir)
    assert refused.status == 1
    assert "its next key has none" in refused.stderr
    fleet.certify(agent, key=new, file="certificate.next")
    visit(agent, controller, "ca")
    typed("key", "--commit", "--state-dir", agent.state_dir)
    visit(agent, controller, "ca")
    agent = restarted(lab, agent)
    visit(agent, controller, "ca")

    assert key_of(agent) == new
    assert not (controller.home / "known_agents").exists()


def test_rotation_that_is_given_up_is_forgotten(lab):
    controller = lab.controller()
    agent = lab.agent(controller)
    visit(agent, controller, "accept-new")
    typed("key", "--rotate", "--state-dir", agent.state_dir)
    visit(agent, controller)
    (agent.state_dir / "key.next").unlink()
    visit(agent, controller)
    assert KnownAgents(controller.home / "known_agents").next_pins() == {}


def test_controller_gets_a_new_key(lab):
    controller = lab.controller()
    agent = lab.agent(controller)
    visit(agent, controller, "accept-new")
    old = parse_public(controller.identity()).key

    commands = typed("identity", "--rotate", env=controller.environment).splitlines()
    visit(agent, controller)
    next_key = {"PYINFRA_AGENT_KEY_FILE": str(controller.home / "identity.next")}
    line = typed("identity", env=controller.environment | next_key)
    assert line in commands[0]
    typed("authorize", "--state-dir", agent.state_dir, line)
    visit(agent, controller)
    typed("exec", f"{agent.host}:{agent.port}", "--", "true", env=controller.environment | next_key)
    typed("identity", "--commit", env=controller.environment)
    visit(agent, controller)
    typed("revoke", "--state-dir", agent.state_dir, fingerprint(old))
    visit(agent, controller)

    assert controller.identity() == line
    (controller.home / "identity.old").replace(controller.home / "identity")
    with pytest.raises(NotAuthorized):
        visit(agent, controller)


def test_fleet_gets_a_new_key(lab, fleet):
    """Two authorities at once, everywhere, until the last certificate of the old one is replaced."""
    controller = lab.controller()
    agent = lab.agent()
    fleet.lets_in(agent)
    fleet.trusted_by(controller)
    fleet.certify(agent)
    fleet.certify_controller(controller)
    visit(agent, controller, "ca")

    new = FleetKey(lab.directory / "next-ca")
    new.lets_in(agent)
    visit(agent, controller, "ca")
    new.trusted_by(controller)
    visit(agent, controller, "ca")
    new.certify(agent)
    visit(agent, controller, "ca")
    new.certify_controller(controller)
    visit(agent, controller, "ca")
    old = typed("ca", "list", "--dir", fleet.directory).split()[1]
    typed("trust", "remove", old, env=controller.environment)
    typed("revoke", "--state-dir", agent.state_dir, old)
    visit(agent, controller, "ca")

    fleet.certify(agent)
    with pytest.raises(UntrustedAgent):
        visit(agent, controller, "ca")
