"""The cache of what was found lately."""

from __future__ import annotations

import json
import os

import pytest

from pyinfra_agent_connector import _seen
from pyinfra_agent_connector._seen import MAX_ENTRIES, Seen, age_text, cache_path, recall, remember

WEB1 = ("web1", "192.0.2.1", "aaaaa-bbbbb-ccccc-ddddd-eeeee", "192.0.2.0/24")
NOW = 1_000_000_000


@pytest.fixture(autouse=True)
def now(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    clock = [NOW]
    monkeypatch.setattr(_seen, "_now", lambda: clock[0])
    return clock


def test_what_was_seen_is_recalled_the_latest_first(now):
    remember([WEB1])
    now[0] += 3 * 3600
    remember([("web2", "192.0.2.2", "", "dns:example.com")])
    assert [(seen.name, seen.where, age_text(seen)) for seen in recall()] == [
        ("web2", "dns:example.com", "just now"),
        ("web1", "192.0.2.0/24", "3 h ago"),
    ]
    assert cache_path().stat().st_mode & 0o777 == 0o600


def test_same_name_elsewhere_is_another_agent(now):
    """And the same one is there once, with the time it was last seen."""
    remember([WEB1])
    now[0] += 60
    remember([WEB1, (*WEB1[:3], "198.51.100.0/24")])
    assert sorted((seen.where, seen.at - NOW) for seen in recall()) == [("192.0.2.0/24", 60), ("198.51.100.0/24", 60)]


def test_what_is_a_week_old_is_forgotten(now):
    remember([WEB1])
    now[0] += 8 * 24 * 3600
    assert recall() == ()


def test_it_is_bounded():
    remember((f"web{number}", "192.0.2.1", "", "x") for number in range(MAX_ENTRIES + 500))
    assert len(recall()) == MAX_ENTRIES


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"3", b'"x"', b"[1]", b"[null]", b'[{"name": 1}]', b"\xff\xfe", b"[" * 100_000, b"{}"],
)
def test_broken_cache_is_none_and_is_replaced(content):
    cache_path().parent.mkdir(parents=True)
    cache_path().write_bytes(content)
    assert recall() == ()
    remember([WEB1])
    assert [seen.name for seen in recall()] == ["web1"]


def test_entry_that_was_tampered_with_is_not_obeyed():
    entry = dict(zip(("name", "address", "fingerprint", "where"), WEB1, strict=True), at=NOW)
    entries = [{**entry, "name": "a\x1b[2Jb"}, {**entry, "name": "x" * 400}, {**entry, "at": "now"}, {**entry}]
    cache_path().parent.mkdir(parents=True)
    cache_path().write_text(json.dumps(entries))
    assert [seen.name for seen in recall()] == ["a?[2Jb", "web1"]


def test_cache_that_cannot_be_written_is_none(monkeypatch, tmp_path):
    """Not an error, not a warning, and nothing is left lying about."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember([WEB1])
    assert recall() == ()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    remember([WEB1])
    assert recall() == ()
    assert list(cache_path().parent.iterdir()) == []


def test_cache_is_where_the_xdg_specification_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_path() == tmp_path / ".cache/pyinfra-agent/seen.json"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "just now"), (59, "just now"), (60, "1 min ago"), (7200, "2 h ago"), (90_000, "1 d ago")],
)
def test_age_is_for_people(seconds, text):
    assert age_text(Seen("web1", "192.0.2.1", "", "x", NOW - seconds)) == text
