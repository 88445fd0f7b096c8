"""Other people's mDNS: avahi finds our agents, and we find what avahi publishes."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time

import pytest

from pyinfra_agent_protocol.keys import KeyPair, fingerprint
from tests.discovery.lab import AGENT_PORT, agent
from tests.e2e.helpers import eventually

OURS, THEIRS = "192.0.2.1", "192.0.2.2"

# avahi needs a message bus of its own, and a file system where neither meets this machine's.
_AVAHI = """
set -e
mkdir -p /run/dbus /run/avahi-daemon
mount -t tmpfs tmpfs /run/dbus && mount -t tmpfs tmpfs /run/avahi-daemon
chown avahi:avahi /run/avahi-daemon
hostname theirs
printf '<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/>
<allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
<allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/>
<allow send_type="signal"/><allow receive_type="signal"/></policy></busconfig>' > /run/dbus/bus.conf
dbus-daemon --config-file=/run/dbus/bus.conf --nofork --nopidfile &
bus=$!
trap 'kill $bus $avahi' EXIT
for i in $(seq 100); do [ -S /run/dbus/system_bus_socket ] && break; sleep 0.05; done
avahi-daemon --no-drop-root --no-chroot --no-rlimits --file=/dev/null >"$0" 2>&1 &
avahi=$!
for i in $(seq 100); do grep -q 'startup complete' "$0" && break; sleep 0.05; done
"$@"
"""


class Avahi:
    """A machine with avahi-daemon; `run` and `start` are for avahi's own tools."""

    def __init__(self, namespace, directory):
        self.log = directory / f"avahi-{time.monotonic_ns()}.log"
        self._prefix = ["unshare", "--mount", "--uts", "--propagation", "private", "bash", "-c", _AVAHI, str(self.log)]
        self._namespace = namespace

    def run(self, *command):
        return self._namespace.run(*self._prefix, *command).stdout

    @contextlib.contextmanager
    def running(self, *command):
        process = self._namespace.start(
            *self._prefix, *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(10)
            process.stdout.close()


@pytest.fixture
def theirs(lab, tmp_path):
    for tool, package in (
        ("avahi-daemon", "avahi-daemon"),
        ("avahi-browse", "avahi-utils"),
        ("dbus-daemon", "dbus-daemon"),
    ):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (package {package})")
    namespace = lab.namespace()
    lab.join(lab.controller, [f"{OURS}/24"], namespace, [f"{THEIRS}/24"])
    return Avahi(namespace, tmp_path)


def test_avahi_on_another_machine_resolves_our_agent(lab, serving, theirs):
    """Its name, port, addresses and all of its text; and its goodbye."""
    ours = serving(lab.controller, "web1", listen=f"{OURS}:{AGENT_PORT}", groups=["web"])
    ours.says("announced")
    seen = theirs.run("avahi-browse", "--resolve", "--terminate", "--parsable", "_pyinfra-agent._tcp")
    (line,) = [line for line in seen.splitlines() if line.startswith("=;eth0;IPv4;web1;")]
    fields = line.split(";")
    assert fields[6:9] == ["web1-agent.local", OURS, str(AGENT_PORT)]
    for text in ('"v=1"', f'"fp={fingerprint(ours.key)}"', '"groups=web"'):
        assert text in fields[9]
    with theirs.running("avahi-browse", "--parsable", "_pyinfra-agent._tcp") as browsing:
        while not browsing.stdout.readline().startswith("+;eth0;IPv4;web1;"):
            pass
        ours.stop()
        while not (line := browsing.stdout.readline()).startswith("-;eth0;IPv4;web1;"):
            assert line


def test_what_avahi_publishes_is_found(lab, theirs):
    one = agent("theirs1", [THEIRS], key=(key := KeyPair.generate().public))
    command = ("avahi-publish", "--service", "theirs1", "_pyinfra-agent._tcp", str(AGENT_PORT), *one["strings"])
    with theirs.running(*command):

        def found():
            seen = [each for each in lab.looked("browse")["agents"] if each["instance"] == "theirs1"]
            # avahi may tell its IPv6 address first; the other one comes with the next look.
            return [each for each in seen if THEIRS in each["addresses"]]

        (seen,) = eventually(found, 10, "the service of avahi")
    assert (seen["server"], seen["addresses"][0], seen["problem"]) == ("theirs.local", THEIRS, "")
    assert seen["advert"]["fingerprint"] == fingerprint(key)


def test_agent_and_avahi_on_one_machine_leave_each_other_alone(lab, serving, theirs, tmp_path):
    """They share port 5353, and avahi keeps its name, which is also the agent's."""
    both = Avahi(lab.controller, tmp_path)
    with both.running("sleep", "60"):
        eventually(lambda: both.log.exists() and "startup complete" in both.log.read_text(), 10, "avahi")
        ours = serving(lab.controller, "theirs", listen=f"{OURS}:{AGENT_PORT}")
        assert "name=theirs " in ours.says("announced")
        seen = theirs.run("avahi-browse", "--resolve", "--terminate", "--parsable", "_pyinfra-agent._tcp")
        assert f";theirs-agent.local;{OURS};" in seen
        assert "conflict" not in both.log.read_text().lower()
