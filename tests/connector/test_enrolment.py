"""What enrolment decides from what it finds; that it does it is shown with real machines, in tests/enrol."""

from __future__ import annotations

from importlib import metadata

import pytest

import pyinfra_agent_connector
from pyinfra_agent_connector import enrolment
from pyinfra_agent_connector._fleet import Fleet
from pyinfra_agent_connector._installation import Installation
from pyinfra_agent_connector._names import BadAgentName
from pyinfra_agent_connector.enrolment import _Plan
from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.keys import KeyPair, fingerprint, format_public

AGENT = KeyPair.generate().public
LINE = format_public(AGENT, "web1")
READY = frozenset({"venv", "ensurepip", "systemd"})
SAFE = {"uid": 0, "python": (3, 11), "has": READY}


@pytest.fixture(autouse=True)
def _version(monkeypatch):
    versions = {"pyinfra-agentd": "1.0", "pyinfra": "3.10.0"}
    monkeypatch.setattr(metadata, "version", versions.__getitem__)


def plan(home, host_name="@ssh/web1", *, data=None, **options):
    values = {"agent_home": str(home)} | (data or {})
    settings = {
        "wheel_dir": None,
        "listen": (),
        "authorized": (),
        "address": None,
        "certify": False,
        "groups": (),
        **options,
    }
    return _Plan.make(values.get, host_name, **settings)


def test_package_offers_the_operations():
    assert pyinfra_agent_connector.enrol is enrolment.enrol
    assert pyinfra_agent_connector.unenrol is enrolment.unenrol


def test_package_says_which_pyinfra_the_operations_need(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "2.9.2")

    with pytest.raises(ImportError, match=r"enrol is for pyinfra 3, and this is pyinfra 2\.9\.2"):
        _ = pyinfra_agent_connector.enrol


@pytest.mark.parametrize(
    ("host_name", "data", "options", "endpoint"),
    [
        ("@ssh/Web1", {}, {}, ("web1", 7963)),
        ("web1", {}, {}, ("web1", 7963)),
        ("@agent/web1", {"agent_host": "web1"}, {}, ("web1", 7963)),
        ("@ssh/alias", {"ssh_hostname": "10.0.0.2"}, {}, ("10.0.0.2", 7963)),
        ("@ssh/web1", {"ssh_hostname": "web1", "agent_host": "10.0.0.3", "agent_port": 7000}, {}, ("10.0.0.3", 7000)),
        ("@ssh/web1", {"agent_host": "10.0.0.3"}, {"address": "web1.example.com:7001"}, ("web1.example.com", 7001)),
    ],
)
def test_plan_names_the_agent_as_the_inventory_will(tmp_path, host_name, data, options, endpoint):
    assert plan(tmp_path, host_name, data=data, **options).endpoint == endpoint


def test_plan_listens_where_the_controller_will_look(tmp_path):
    assert plan(tmp_path).listen == ()
    assert plan(tmp_path, data={"agent_port": 7000}).listen == (":7000",)
    assert plan(tmp_path, data={"agent_port": 7000}, listen="10.0.0.2:7000").listen == ("10.0.0.2:7000",)


@pytest.mark.parametrize("host_name", ["@local/10.0.0.0/8", "@ssh/what is this"])
def test_plan_without_an_address_asks_for_one(tmp_path, host_name):
    with pytest.raises(BadAgentName, match="address="):
        plan(tmp_path, host_name, address="10.0.0.0/8" if "local" in host_name else None)


def test_plan_refuses_what_is_no_line(tmp_path):
    with pytest.raises(KeyFormatError):
        plan(tmp_path, authorized="from=10.0.0.0/8")


def test_plan_adds_only_lines_that_are_missing(tmp_path):
    ours, restricted = plan(tmp_path), f'from="10.0.0.0/8" {LINE}'
    (line,) = ours.lines

    assert ours.missing_lines(Installation()) == (line,)
    assert ours.missing_lines(Installation(authorized=(f"{line} another comment",))) == ()
    assert ours.missing_lines(Installation(authorized=("rubbish", LINE))) == (line,)
    assert ours.missing_lines(Installation(authorized=(f"no-pty {line}",))) == ()  # restricted there, and left so
    other = plan(tmp_path, authorized=[restricted])
    assert other.missing_lines(Installation(authorized=(f"from=10.0.0.0/8 {LINE}",))) == ()
    assert other.missing_lines(Installation(authorized=(LINE,))) == (restricted,)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({}, None),
        ({"uid": None}, "cannot be looked at"),
        ({"uid": 1000}, "add --sudo"),
        ({"python": None}, "there is no python3 on this host: install Python 3.10 or later"),
        ({"python": (3, 9)}, "is Python 3.9, and the agent needs 3.10"),
        ({"has": READY - {"venv"}}, "no module venv"),
        ({"has": READY - {"ensurepip"}}, "has no ensurepip"),
        ({"has": READY - {"ensurepip"}, "version": "1.0"}, None),
        ({"has": READY - {"systemd"}}, "no systemd runs"),
        ({"has": READY | {"stranger"}}, "no virtual environment: move it away"),
    ],
)
def test_problem_is_one_clear_line(tmp_path, found, says):
    problem = plan(tmp_path).problem(Installation(**SAFE | found), "python3")

    assert (problem is None) if says is None else (says in problem and "\n" not in problem)


def test_pip_as_a_wheel_makes_ensurepip_unneeded(tmp_path):
    (tmp_path / "pip-25.0-py3-none-any.whl").touch()
    found = Installation(**SAFE | {"has": READY - {"ensurepip"}})

    assert plan(tmp_path, wheel_dir=str(tmp_path)).problem(found, "python3") is None


def test_changed_key_is_refused_before_anything_is_done(tmp_path):
    """SSH brings the agent there, and does not replace what the user has pinned."""
    pinned = KeyPair.generate().public
    ours = plan(tmp_path)
    ours.known.pin("web1:7963", pinned)

    for found, shown in (({"key_line": LINE}, fingerprint(AGENT)), ({}, "no key yet")):
        problem = ours.problem(Installation(**SAFE | found), "python3")
        assert fingerprint(pinned) in problem
        assert shown in problem
        assert "pyinfra-agent trust remove web1:7963" in problem
    ours.known.remove("web1:7963")
    ours.known.pin("web1:7963", AGENT)
    assert ours.problem(Installation(**SAFE | {"key_line": LINE}), "python3") is None


def test_plan_is_up_and_let_in_only_when_all_is_done(tmp_path):
    ours = plan(tmp_path)
    done = {
        "key_line": LINE,
        "authorized": ours.lines,
        "version": "1.0",
        "note": "1.0",
        "has": READY | {"service"},
    }
    assert ours.is_up(Installation(**done))
    assert not ours.is_let_in(Installation(**done))  # not pinned yet
    ours.pin(LINE)

    assert ours.is_let_in(Installation(**done))
    for missing in ({"version": "0.9"}, {"note": "1.0 --listen :1"}, {"note": None}, {"has": READY}):
        assert not ours.is_up(Installation(**done | missing))
    for missing in ({"key_line": None}, {"authorized": ()}):
        assert not ours.is_let_in(Installation(**done | missing))


def test_certified_agent_is_signed_again_when_anything_differs(tmp_path):
    fleet = Fleet(tmp_path / "ca")
    fleet.create("fleet", None)
    ours = plan(tmp_path, certify=True, groups="web")
    assert len(ours.lines) == 2  # this controller has no certificate of its own

    certificate = ours.sign(LINE)

    found = Installation(key_line=LINE, certificate=certificate)
    assert ours.is_certified(found)
    assert not ours.is_certified(Installation(key_line=LINE))
    assert not ours.is_certified(
        Installation(key_line=format_public(KeyPair.generate().public), certificate=certificate)
    )
    assert not plan(tmp_path, certify=True).is_certified(found)
    assert not plan(tmp_path, "@ssh/web2", certify=True, groups="web").is_certified(found)
    fleet.revoke(fleet.ledger()[0].serial)
    assert not ours.is_certified(found)
