"""Enrolment by a fleet key: no line for this controller on the target, and none for the next one."""

from __future__ import annotations

from tests.e2e.helpers import AGENT
from tests.enrol.helpers import changed, failed, succeeded, unchanged


def test_enrol_certifies_the_agent_for_every_controller_of_the_fleet(user, target):
    """The agent shows a certificate with its groups, and lets in whoever the fleet key has certified."""
    succeeded(user.run(AGENT, "ca", "init"))
    identity = succeeded(user.run(AGENT, "identity")).strip()
    signed = user.run(AGENT, "ca", "sign", "--controller", "first", identity, check=True)
    (user.home / "certificate").write_text(signed.stdout)

    changed(user.enrol("certify=true", "groups=web"))

    authorized = target.run("cat", "/var/lib/pyinfra-agent/authorized_controllers").stdout
    assert "cert-authority" in authorized
    assert identity.split()[1] not in authorized
    unchanged(user.enrol("certify=true", "groups=web"))

    # A controller that has met neither: it trusts the fleet key, and has a certificate.
    other = user.directory / "other"
    identity = succeeded(user.run(AGENT, "identity", PYINFRA_AGENT_HOME=other)).strip()
    signed = user.run(AGENT, "ca", "sign", "--controller", "second", identity, check=True)
    (other / "certificate").write_text(signed.stdout)
    strict = ("--data", "agent_trust=ca", "fact", "server.Hostname")
    failed(user.agent(*strict, PYINFRA_AGENT_HOME=other), "agent_trust is ca")
    authority = (user.home / "ca/authority").read_text().strip()
    succeeded(user.run(AGENT, "trust", "add", "--authority", authority, PYINFRA_AGENT_HOME=other))
    succeeded(user.agent(*strict, PYINFRA_AGENT_HOME=other))
    succeeded(user.unenrol())
