"""Zones of BIND 9, asked over real sockets."""

from __future__ import annotations

import shutil

import pytest

from tests.discovery.named import SERVER, ZONE, many_agents, named, zone_text

AGENTS = 5000


@pytest.fixture(autouse=True)
def _able_to_serve_zones():
    if shutil.which("named") is None:
        pytest.skip("named is not installed (package bind9)")


def test_zone_of_five_thousand_agents_is_browsed_in_under_two_seconds(lab, tmp_path):
    """In 64 domains for browsing, because a message has no room for as many in one."""
    with named(lab.controller, tmp_path, zone_text(many_agents(AGENTS), domains=64)):
        looks = (lab.looked("browse-zone", ZONE, SERVER) for _ in range(3))
        # On a busy machine the server itself may be too late for the first.
        found = next(look for look in looks if "agents" in look)
    assert len(found["agents"]) == AGENTS
    assert not any(one["problem"] for one in found["agents"])
    print(f"browsing a zone of {AGENTS}: {found['seconds']} s")
    assert found["agents"][7]["server"].endswith(f".{ZONE}")
    assert found["seconds"] - found["waited_seconds"] < 2


def test_zone_whose_answer_fits_no_datagram_is_asked_by_tcp(lab, tmp_path):
    with named(lab.controller, tmp_path, zone_text(many_agents(90))):
        found = lab.looked("browse-zone", ZONE, SERVER)
    assert len(found["agents"]) == 90


def test_zone_of_a_server_that_does_not_tell_everything_at_once_is_browsed(lab, tmp_path):
    """RFC 8482: such a server answers a question for everything with little; each record is asked for then."""
    with named(lab.controller, tmp_path, zone_text(many_agents(20)), "minimal-any yes;"):
        found = lab.looked("browse-zone", ZONE, SERVER)
    assert [one["problem"] for one in found["agents"]] == [""] * 20


def test_zone_is_asked_of_the_next_server_when_the_first_is_dead(lab, tmp_path):
    with named(lab.controller, tmp_path, zone_text(many_agents(3))):
        found = lab.looked("browse-zone", ZONE, "127.0.0.9", SERVER)
    assert len(found["agents"]) == 3
    assert found["seconds"] < 5


def test_zone_is_asked_of_the_servers_of_this_machine(lab, tmp_path):
    """Those of /etc/resolv.conf, which stands in the way of another one here."""
    (tmp_path / "resolv.conf").write_text(f"# mine\nsearch {ZONE}\nnameserver {SERVER}\n")
    program = f'mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && exec "$@"'
    with named(lab.controller, tmp_path, zone_text(many_agents(3))):
        lab.controller.prefix += ["unshare", "--mount", "sh", "-c", program, "sh"]
        found = lab.looked("browse-zone", ZONE)
    assert (found["servers"], len(found["agents"])) == ([SERVER], 3)


def test_zone_without_agents_has_none(lab, tmp_path):
    with named(lab.controller, tmp_path, zone_text([])):
        assert lab.looked("browse-zone", ZONE, SERVER)["agents"] == []


@pytest.mark.parametrize("zone", ["elsewhere.test", ZONE])
def test_zone_that_nobody_answers_for_says_who_was_asked(lab, tmp_path, zone):
    """A server that refuses, and no server at all."""
    if zone == ZONE:
        error = lab.looked("browse-zone", zone, SERVER)["error"]
        assert error == f"no DNS server answers for {ZONE}: asked {SERVER}"
    else:
        with named(lab.controller, tmp_path, zone_text([])):
            error = lab.looked("browse-zone", zone, SERVER)["error"]
        assert error == f"no DNS server answers for {zone}: asked {SERVER}; {SERVER} answered with error 5"
