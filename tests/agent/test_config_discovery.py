"""Values of the configuration that say how an agent is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyinfra_agent._config import ConfigError, parse_config
from pyinfra_agent._settings import DnsZone

ZONE = 'dns = {zone = "%s", server = "%s", key_file = "%s"}'


def complaint(text):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "agent.toml")
    (line,) = caught.value.lines
    return line


@pytest.mark.parametrize(
    ("server", "read"),
    [
        ("192.0.2.53", ("192.0.2.53", 53)),
        ("192.0.2.53:5300", ("192.0.2.53", 5300)),
        ("ns1.example.com", ("ns1.example.com", 53)),
        ("ns1.example.com:5300", ("ns1.example.com", 5300)),
        ("2001:db8::53", ("2001:db8::53", 53)),
        ("[2001:db8::53]:5300", ("2001:db8::53", 5300)),
    ],
)
def test_server_of_a_zone_is_an_address_or_a_name_with_or_without_a_port(server, read):
    assert parse_config(ZONE % ("example.com", server, "/k"), "x").dns == DnsZone("example.com", read, Path("/k"))


@pytest.mark.parametrize(
    ("zone", "server", "key_file"),
    [
        ("", "ns1", "/k"),
        ("exa mple.com", "ns1", "/k"),
        ("a..b", "ns1", "/k"),
        (".".join(["label"] * 40), "ns1", "/k"),
        ("example.com", "", "/k"),
        ("example.com", "ns1:", "/k"),
        ("example.com", "ns1:0", "/k"),
        ("example.com", "ns1:65536", "/k"),
        ("example.com", "[ns1]:53", "/k"),
        ("example.com", "[::1", "/k"),
        ("example.com", "a b", "/k"),
        ("example.com", "ns1", "relative"),
    ],
)
def test_zone_that_cannot_be_used_is_refused_with_an_example(zone, server, key_file):
    said = complaint(ZONE % (zone, server, key_file))
    assert said.startswith("agent.toml: dns: found ")
    assert 'expected {zone = "example.com", server = "192.0.2.53", key_file = "/etc/pyinfra-agent/dns.key"}' in said


@pytest.mark.parametrize("text", ['dns = "example.com"', 'dns = {zone = "example.com"}', "dns = {x = 1}", "dns = []"])
def test_zone_that_is_no_table_of_three_is_refused(text):
    assert "expected {zone = " in complaint(text)


def test_empty_table_is_no_zone():
    assert parse_config("dns = {}", "x").dns is None


@pytest.mark.parametrize(
    "groups", ['"web"', "[1]", '["a b"]', '["all"]', '[""]', '["a,b"]', str([f"group{n:03}" for n in range(32)])]
)
def test_groups_that_cannot_be_announced_are_refused(groups):
    assert "expected a list of group names" in complaint(f"groups = {groups}")


def test_groups_are_each_taken_once():
    assert parse_config('groups = ["web", "db", "web"]', "x").groups == ("web", "db")


@pytest.mark.parametrize("names", ['"eth0"', "[0]", '[""]', '["a b"]', '["../x"]', '["sixteen-letters-x"]'])
def test_interfaces_that_cannot_be_are_refused(names):
    assert "expected a list of interfaces" in complaint(f"announce_interfaces = {names}")
