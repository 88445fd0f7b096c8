"""`pyinfra-agent discover`: what a person sees, what a program gets, and what is followed live."""

from __future__ import annotations

import json
import queue
import signal
import threading
import time

import pytest

from pyinfra_agent_protocol.keys import KeyPair, fingerprint, format_public
from tests.discovery.lab import AGENT_PORT, Lab, agent
from tests.discovery.serving import Serving
from tests.e2e.helpers import AGENT, clean_environment
from tests.trust_e2e.helpers import FleetKey

CONTROLLER = "192.0.2.1"
ADDRESSES = [f"192.0.2.{number}" for number in range(2, 9)]
WEB, DB = ADDRESSES[:2]
NONE, AMISS = 1, 3


class Looking:
    """A user who looks around from the controller's namespace."""

    def __init__(self, lab, directory):
        self.lab = lab
        self.home = directory / "home"
        self.home.mkdir()
        self.environment = clean_environment(
            PYINFRA_AGENT_HOME=str(self.home), XDG_CACHE_HOME=str(directory / "cache"), PYINFRA_AGENT_BROWSE_SECONDS="1"
        )

    def pin(self, **lines):
        text = "".join(f"{name}:{AGENT_PORT} {line}\n" for name, line in lines.items())
        (self.home / "known_agents").write_text(text)

    def discover(self, *words, status=0):
        return self.lab.controller.run(str(AGENT), "discover", *words, status=status, env=self.environment)

    def found(self, *words, status=0):
        return json.loads(self.discover("--json", *words, status=status).stdout)

    def watch(self, *words):
        return Watching(
            self.lab.controller.start(
                str(AGENT), "discover", "--watch", *words, stdout=-1, text=True, env=self.environment
            )
        )


class Watching:
    """A `discover --watch` that goes on; its lines as they come."""

    def __init__(self, process):
        self.process = process
        self._lines = queue.Queue()
        threading.Thread(target=lambda: [self._lines.put(line) for line in process.stdout], daemon=True).start()

    def says(self, *words, seconds=10):
        """Wait for a line that has all of *words*; return how long it took."""
        began = time.monotonic()
        while True:
            line = self._lines.get(timeout=max(0.01, began + seconds - time.monotonic()))
            if all(word in line for word in words):
                return time.monotonic() - began

    def end(self, number=signal.SIGINT):
        self.process.send_signal(number)
        status = self.process.wait(10)
        self.process.stdout.close()
        return status


@pytest.fixture(scope="module")
def lab():
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def machine(lab):
    namespace = lab.namespace()
    lab.join(lab.controller, [f"{CONTROLLER}/24"], namespace, [f"{address}/24" for address in ADDRESSES])
    return namespace


@pytest.fixture
def user(lab, tmp_path):
    return Looking(lab, tmp_path)


@pytest.fixture(scope="module")
def two(machine, tmp_path_factory):
    """Two agents that are announced: web1 of groups, db1 of none. A test leaves them as they were."""
    directory = tmp_path_factory.mktemp("two")
    agents = [
        Serving(machine, directory, "web1", listen=f"{WEB}:{AGENT_PORT}", groups=["web", "berlin"]),
        Serving(machine, directory, "db1", listen=f"{DB}:{AGENT_PORT}"),
    ]
    for one in agents:
        one.says("announced")
    yield agents
    for one in agents:
        one.kill()


@pytest.fixture
def late(machine, serving):
    """Starts a third agent, which a test may end."""

    def late():
        one = serving(machine, "late", listen=f"{ADDRESSES[2]}:{AGENT_PORT}")
        one.says("announced")
        return one

    return late


def test_discover_prints_a_table(two, user):
    """Of a pinned agent and a new one."""
    user.pin(web1=two[0].key_line)
    lines = user.discover().stdout.splitlines()
    assert lines[0].split() == ["NAME", "ADDRESS", "GROUPS", "OS", "VERSION", "KEY", "ROUND", "TRIP"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["db1", f"{DB}:{AGENT_PORT}", "-"],
        ["web1", f"{WEB}:{AGENT_PORT}", "web,berlin"],
    ]
    assert lines[1].split()[-3:][::2] == ["new", "ms"]
    assert lines[2].split()[-3:][::2] == ["pinned", "ms"]


def test_discover_says_who_is_missing_and_why(machine, two, late, user):
    """Whoever was found lately and is not there: first the agent is gone, and then its machine."""
    one = late()
    assert {each["name"] for each in user.found()["agents"]} == {"db1", "late", "web1"}
    one.stop()
    said = " ".join(user.discover(status=AMISS).stdout.split())
    assert "Should be there, and is not: late 192.0.2.4 seen just now; port closed: the machine is up" in said
    machine.firewall(f"ip daddr {ADDRESSES[2]} tcp dport {AGENT_PORT} drop")
    try:
        (absent,) = user.found("subnet", status=AMISS)["absent"]
    finally:
        machine.firewall()
    assert (absent["name"], absent["reason"][:10]) == ("late", "no answer:")


def test_discover_tells_programs_all_of_it(two, user):
    web, _ = two
    user.pin(web1=web.key_line, db1=format_public(KeyPair.generate().public))
    found = user.found(status=AMISS)
    # Somebody else's key is pinned for db1, so this one gets its name from its address.
    db1, web1 = sorted(found["agents"], key=lambda one: one["address"], reverse=True)
    assert (web1["name"], web1["address"], web1["port"], web1["key"]) == ("web1", WEB, AGENT_PORT, "pinned")
    assert (web1["groups"], web1["found_by"], web1["problem"]) == (["web", "berlin"], "mdns", "")
    assert web1["fingerprint"] == fingerprint(web.key)
    assert 0 < web1["round_trip_seconds"] < 0.5
    assert all(web1[key] for key in ("os", "arch", "version"))
    assert (db1["name"], db1["key"]) == (DB, "changed")
    assert "another key is pinned for db1" in db1["problem"]
    assert "calls itself db1, but its key" in found["warnings"][0]


def test_discover_looks_for_one_agent_by_its_name_and_address(two, user):
    """And its key is compared with the one pinned for what was typed."""
    web, db = two
    user.pin(web1=web.key_line, db1=format_public(KeyPair.generate().public))
    (one,) = user.found("@agent/web1")["agents"]
    assert (one["name"], one["address"], one["key"]) == ("web1", WEB, "pinned")
    (one,) = user.found("db1", status=NONE)["agents"]
    assert (one["key"], one["fingerprint"]) == ("changed", fingerprint(db.key))
    assert "another key is pinned for db1: was it installed anew" in one["problem"]
    (one,) = user.found(WEB)["agents"]
    assert (one["name"], one["key"]) == (WEB, "new")
    names = {one["name"] for one in user.found("192.0.2.0/29", status=AMISS)["agents"]}
    assert names == {"web1", DB}


def test_discover_shows_who_is_certified(two, late, user, tmp_path):
    """By an authority of the user's: announced, knocked at, or asked for by the name that the certificate has."""
    fleet, one = FleetKey(tmp_path / "fleet"), late()
    fleet.certify(one, "late", key=one.key_line)
    (user.home / "authorities").write_text(f"{fleet.line}\n")
    user.pin(web1=two[0].key_line)
    everybody = {"db1": "new", "late": "certified", "web1": "pinned"}
    assert {each["name"]: each["key"] for each in user.found()["agents"]} == everybody
    assert {each["name"]: each["key"] for each in user.found("192.0.2.0/29")["agents"]} == everybody
    (found,) = user.found("late")["agents"]
    assert (found["key"], found["address"], found["problem"]) == ("certified", ADDRESSES[2], "")
    (found,) = user.found(ADDRESSES[2], status=NONE)["agents"]
    assert found["key"] == "new"
    assert "late" in found["problem"]
    assert [line.split()[-3] for line in user.discover().stdout.splitlines()[1:]] == ["new", "certified", "pinned"]


def test_discover_asks_those_who_are_known(two, user):
    user.pin(**{WEB: two[0].key_line, DB: two[0].key_line, ADDRESSES[6]: two[1].key_line})
    found = {one["name"]: one for one in user.found("known", status=AMISS)["agents"]}
    assert {name: one["key"] for name, one in found.items()} == {WEB: "pinned", DB: "changed", ADDRESSES[6]: ""}
    assert "port closed" in found[ADDRESSES[6]]["problem"]


def test_discover_says_why_an_announced_agent_cannot_be_used(lab, machine, two, user, serving):
    """Nothing listens there; it speaks another version; it announces the key of somebody else."""
    web, _ = two
    serving(machine, "quiet", "--no-announce", listen=f"{ADDRESSES[4]}:{AGENT_PORT}")
    old = agent("old", [ADDRESSES[2]])
    old["strings"][0] = "v=7"
    dead, thief = agent("dead", [ADDRESSES[3]]), agent("thief", [ADDRESSES[4]], key=web.key)
    announcer = lab.announce(machine, {"interfaces": [ADDRESSES[2]], "agents": [old, dead, thief]})
    try:
        found = user.found(status=AMISS)
    finally:
        announcer.kill()
        announcer.wait()
    reasons = {one["name"]: one["reason"] for one in found["absent"]}
    reasons |= {one["name"]: one["problem"] for one in found["agents"]}
    assert "it speaks version 7 of the protocol" in reasons["old"]
    assert "port closed" in reasons["dead"]
    assert reasons["web1"] == ""
    assert f"it announces the key {fingerprint(web.key)} and has another" in reasons["thief"]


def test_discover_shows_nothing_that_moves_a_terminal(machine, two, user):
    with machine.attacked("terminal", ADDRESSES[5]):
        done = user.discover(status=None)
    assert "web1" in done.stdout
    assert "".join((done.stdout + done.stderr).split()).isprintable()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["10.0.0.0/99"], 2, "10.0.0.0/99"),
        (["a,b"], 2, "pyinfra splits names at commas"),
        (["loopback"], 2, "there is nothing to look for"),
        (["--what"], 2, "unrecognized arguments"),
        (["10.0.0.0/8"], 1, "at most 65,536 are tried"),
        (["known"], 1, "no agent was found: read "),
        ([], 1, "no agent was found: no network interface of this machine has an address"),
    ],
)
def test_discover_that_cannot_look_or_finds_nobody_is_one_line(user, words, status, said):
    user.lab = Lab()  # nobody is on it
    try:
        done = user.discover(*words, status=status)
    finally:
        user.lab.close()
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_watch_follows_arrivals_and_goodbyes_live(two, late, user):
    """Also of an agent that is killed and says nothing: at the next look."""
    watching = user.watch()
    try:
        watching.says("arrived", "web1", f"{WEB}:{AGENT_PORT}", "new")
        one = late()
        assert watching.says("arrived", "late") < 3
        one.stop()
        assert watching.says("left", "late", "said goodbye") < 4
        one = late()
        watching.says("arrived", "late")
        one.kill()
        watching.says("left", "late", "port closed", seconds=25)
    finally:
        status = watching.end()
    assert status == 130


def test_watch_tells_programs_an_event_a_line(two, late, user):
    one = late()
    watching = user.watch("--json")
    try:
        watching.says('"event": "arrived"', '"name": "late"')
        one.stop()
        watching.says('"event": "left"', '"reason": "said goodbye"', '"name": "late"')
    finally:
        watching.end()
