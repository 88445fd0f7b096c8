"""The status socket, and what its report looks like."""

from __future__ import annotations

import json
import socket
import stat

import pytest
import trio

from pyinfra_agent._metrics import format_person, format_prometheus
from pyinfra_agent._status import ask_status, serve_status

REPORT = {
    "version": '1.0"\\',
    "pid": 7,
    "uptime_seconds": 93_784.5,
    "listening": ["0.0.0.0:7963"],
    "sessions": 2,
    "sessions_lost": 1,
    "session_list": [
        {"session": "0a1b", "controller": "al\x1bice", "peer": "192.0.2.1:5", "connected": True},
        {"session": "0c1d", "controller": "bob", "peer": "", "connected": False},
    ],
    "requests_running": 1,
    "oldest_request_seconds": 61.25,
    "request_list": [
        {"controller": "bob", "session": "0c1d", "request": "exec", "label": "apt\nupdate", "age_seconds": 61.25}
    ],
    "connections": 9,
    "connections_refused": 3,
    "received_bytes": 1536,
    "sent_bytes": 5 << 30,
    "resident_memory_bytes": 30 << 20,
    "open_descriptors": 12,
}


@pytest.fixture
async def serving(tmp_path, nursery):
    """A state directory with a socket that answers."""
    nursery.start_soon(serve_status, tmp_path, lambda: REPORT)
    await trio.testing.wait_all_tasks_blocked()
    return tmp_path


async def test_report_arrives_whole(serving):
    assert await trio.to_thread.run_sync(ask_status, serving) == REPORT


async def test_socket_is_private(serving):
    assert stat.S_IMODE((serving / "status").stat().st_mode) == 0o600


async def test_report_larger_than_a_buffer_arrives_whole(tmp_path, nursery):
    large = {"list": ["x" * 1000] * 5000}
    nursery.start_soon(serve_status, tmp_path, lambda: large)
    await trio.testing.wait_all_tasks_blocked()
    assert await trio.to_thread.run_sync(ask_status, tmp_path) == large


async def test_asker_that_does_not_read_is_dropped(tmp_path, nursery, autojump_clock):
    nursery.start_soon(serve_status, tmp_path, lambda: {"list": ["x" * 1000] * 5000})
    await trio.testing.wait_all_tasks_blocked()
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(tmp_path / "status"))
        await trio.sleep(10)
        received = 0
        while chunk := asking.recv(1 << 20):
            received += len(chunk)
        assert received < 5_000_000


async def test_socket_that_a_killed_agent_left_is_replaced_and_goes_with_the_agent(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "status"))
    assert ask_status(tmp_path) is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_status, tmp_path, lambda: REPORT)
        await trio.testing.wait_all_tasks_blocked()
        assert await trio.to_thread.run_sync(ask_status, tmp_path) == REPORT
        nursery.cancel_scope.cancel()
    assert not (tmp_path / "status").exists()


async def test_directory_may_be_deeper_than_an_address_is_long(tmp_path):
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_status, deep, lambda: REPORT)
        await trio.testing.wait_all_tasks_blocked()
        assert await trio.to_thread.run_sync(ask_status, deep) == REPORT
        nursery.cancel_scope.cancel()


async def test_agent_without_a_place_for_the_socket_works_without(tmp_path, capsys):
    (tmp_path / "status").mkdir()
    with trio.fail_after(5):
        await serve_status(tmp_path, lambda: REPORT)
    assert "without-status" in capsys.readouterr().err


def test_no_directory_and_no_answer_are_no_report(tmp_path):
    assert ask_status(tmp_path / "missing") is None
    assert ask_status(tmp_path) is None


def test_person_sees_no_control_characters():
    text = format_person(REPORT)
    assert text.isascii()
    assert all(line.isprintable() for line in text.splitlines())
    assert "al\\x1bice" in text
    assert "exec apt\\nupdate" in text
    assert "up 1d 02:03:04" in text
    assert "1.5 KiB received, 5.0 GiB sent" in text
    assert "0c1d  lost " in text


def test_metrics_state_each_number_once_with_help_and_type():
    lines = format_prometheus(json.loads(json.dumps(REPORT))).splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert 'pyinfra_agent_info{version="1.0\\"\\\\"} 1' in samples
    assert "pyinfra_agent_connections_refused_total 3" in samples
    assert len(lines) == 3 * len(samples)
    assert len({line.split()[0] for line in samples}) == len(samples)


def test_agent_that_is_away_is_a_metric_of_its_own():
    assert format_prometheus(None).splitlines()[-1] == "pyinfra_agent_up 0"
