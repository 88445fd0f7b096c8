"""What an agent says about itself."""

from __future__ import annotations

import socket

import pytest

from pyinfra_agent._profile import machine_name, profile
from pyinfra_agent_protocol.advert import MAX_ADVERT_BYTES
from pyinfra_agent_protocol.keys import KeyPair, fingerprint


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("web1", "web1"),
        ("Web1.Example.COM", "web1"),
        ("my_host", "my-host"),
        ("", "agent"),
        ("...", "agent"),
        ("bücher", "b-cher"),
        ("x" * 64, "x" * 48),
    ],
)
def test_name_is_the_host_name_as_it_can_stand_in_any_name(monkeypatch, host, name):
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert machine_name() == name


def test_profile_has_key_groups_and_system():
    key = KeyPair.generate().public
    found = profile(key, 7963, ["web", "db"])
    assert (found.port, found.advert.fingerprint, found.advert.groups) == (7963, fingerprint(key), ("web", "db"))
    assert found.advert.os
    assert found.advert.arch


def test_profile_with_long_groups_leaves_out_what_can_be_asked_later():
    groups = [f"{number:02}{'x' * 58}" for number in range(4)]
    found = profile(KeyPair.generate().public, 7963, groups)
    assert found.advert.groups == tuple(groups)
    assert sum(len(string) + 1 for string in found.advert.strings()) <= MAX_ADVERT_BYTES


def test_names_are_numbered_from_two():
    names = profile(KeyPair.generate().public, 1, []).names()
    first, second, third = (next(names) for _ in range(3))
    assert (second, third) == (f"{first}-2", f"{first}-3")
