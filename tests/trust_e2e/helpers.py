"""What an administrator types, as functions: the real commands, and what they print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_connector._trust import AgentTrust
from pyinfra_agent_connector.client import AgentClient
from tests.e2e.helpers import AGENT, CONNECT_SECONDS, run

if TYPE_CHECKING:
    from pathlib import Path


def typed(*words, **options):
    """Run the agent's command; return what it prints."""
    done = run(AGENT, *words, **options)
    assert done.status == 0, done.text
    return done.stdout.strip()


def key_of(agent):
    return typed("key", "--state-dir", agent.state_dir)


def visit(agent, controller, policy="strict", host=None):
    """Connect as *controller* under *policy*, run a command, and leave."""
    trust = AgentTrust(controller.home, host or agent.host, agent.port, policy, None)
    client = AgentClient(
        agent.host,
        agent.port,
        identity=load_or_create(controller.home),
        check_key=trust.check,
        learn_key=trust.learn,
        connect_seconds=CONNECT_SECONDS,
    )
    client.connect()
    try:
        assert client.run(["true"]).exit == 0
    finally:
        client.close()


@dataclass
class FleetKey:
    """`pyinfra-agent ca` with a directory of its own."""

    directory: Path

    def __post_init__(self):
        typed("ca", "init", "--dir", self.directory, "--comment", self.directory.name)

    @property
    def line(self):
        return (self.directory / "authority").read_text().strip()

    def sign(self, *words):
        return typed("ca", "sign", "--dir", self.directory, *words)

    def certify(self, agent, *names, **more):
        """Sign the agent's key and put the certificate where it belongs."""
        names = [word for name in names or (agent.host,) for word in ("--agent", name)]
        (agent.state_dir / more.get("file", "certificate")).write_text(
            self.sign(*names, more.get("key") or key_of(agent)) + "\n"
        )

    def certify_controller(self, controller, *words):
        certificate = self.sign("--controller", "alice", *words, controller.identity())
        (controller.home / "certificate").write_text(f"{certificate}\n")

    def trusted_by(self, controller):
        typed("trust", "add", "--authority", self.line, env=controller.environment)

    def lets_in(self, agent, *options):
        typed("authorize", "--state-dir", agent.state_dir, "--authority", *options, self.line)

    def revoke(self, what, *homes):
        typed("ca", "revoke", "--dir", self.directory, what)
        for home in homes:
            (home / "revoked").write_text((self.directory / "revoked").read_text())
            (home / "revoked").chmod(0o600)
