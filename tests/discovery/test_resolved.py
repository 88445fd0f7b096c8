"""systemd-resolved's multicast DNS: it finds our agents, and we find what it publishes."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from pyinfra_agent_protocol.keys import KeyPair, fingerprint
from tests.containers import CONTROLLER_ADDRESS, Lab, containers_or_skip
from tests.discovery.lab import AGENT_PORT, HERE, ROOT, agent
from tests.discovery.serving import Serving
from tests.e2e.helpers import eventually

_SERVICE = "_pyinfra-agent._tcp"


@pytest.fixture
def machines():
    """A network of containers, and their controller's side of it."""
    containers_or_skip()
    if shutil.which("resolvectl") is None or not Path("/lib/systemd/systemd-resolved").exists():
        pytest.skip("systemd-resolved is not installed (package systemd-resolved)")
    with Lab() as lab:
        yield lab


@pytest.fixture
def theirs(machines):
    """A machine whose systemd-resolved speaks multicast DNS, which it does not by default."""
    container = machines.add("theirs")
    _write(container.root / "etc/systemd/resolved.conf.d/mdns.conf", "[Resolve]\nMulticastDNS=yes\nLLMNR=no\n")
    container.start()
    container.wait_running()
    _restart(container)
    return container


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _restart(container):
    container.run("systemctl", "restart", "systemd-resolved", check=True)
    container.run("resolvectl", "mdns", "host0", "yes", check=True)


def test_resolved_on_another_machine_finds_our_agent(machines, theirs, tmp_path):
    """It browses to its name, resolves that to port, address and text, and the name of its addresses."""

    class Controller:
        start = staticmethod(machines.popen)

    ours = Serving(Controller, tmp_path, "web1", listen=f"{CONTROLLER_ADDRESS}:{AGENT_PORT}", groups=["web"])
    try:
        ours.says("announced")

        def said(*question):
            return eventually(lambda: theirs.run("resolvectl", *question).stdout, 20, f"an answer to {question}")

        assert f"web1.{_SERVICE}.local" in said("query", "--type=PTR", f"{_SERVICE}.local")
        service = said("service", "web1", _SERVICE, "local")
        assert f"web1-agent.local:{AGENT_PORT}" in service
        for text in (CONTROLLER_ADDRESS, "v=1", f"fp={fingerprint(ours.key)}", "groups=web"):
            assert text in service.split()
        assert f"web1-agent.local: {CONTROLLER_ADDRESS} " in said("query", "web1-agent.local")
    finally:
        ours.kill()


def test_what_resolved_publishes_is_found(machines, theirs):
    key = KeyPair.generate().public
    texts = " ".join(f'"{string}"' for string in agent("theirs1", [theirs.address], key=key)["strings"])
    service = f"[Service]\nName=theirs1\nType={_SERVICE}\nPort={AGENT_PORT}\nTxtText={texts}\n"
    _write(theirs.root / "etc/systemd/dnssd/agent.dnssd", service)
    _restart(theirs)

    def found():
        done = machines.run(
            *(sys.executable, str(HERE / "looker.py"), "browse"),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
        )
        return [one for one in json.loads(done.stdout)["agents"] if theirs.address in one["addresses"]]

    (one,) = eventually(found, 20, "the service of systemd-resolved")
    assert (one["instance"], one["server"], one["port"]) == ("theirs1", "theirs.local", AGENT_PORT)
    assert (one["addresses"][0], one["problem"]) == (theirs.address, "")
    assert one["advert"]["fingerprint"] == fingerprint(key)
