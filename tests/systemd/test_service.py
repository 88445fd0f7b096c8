"""The agent as a service: ready when it says so, watched, drained when it is stopped, and back after a reboot."""

from __future__ import annotations

import signal
import subprocess
import time

from tests.systemd.helpers import eventually

SLOW = "print(output(connected(), 'sh', '-c', 'echo begun; sleep 2; echo ended'))"


def drop_in(machine, text):
    directory = machine.container.path("/etc/systemd/system/pyinfra-agent.service.d")
    directory.mkdir(exist_ok=True)
    (directory / "test.conf").write_text(text)
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", "pyinfra-agent")


def test_installed_service_is_ready_and_says_what_it_does(service):
    assert service.show("ActiveState") == "active"
    assert service.show("NotifyAccess") == "main"
    assert service.show("StatusText") == "0 sessions, 0 requests running"
    service.serves()


def test_service_starts_at_boot(service):
    service.container.reboot()
    service.serves()


def test_service_gives_commands_a_cgroup_and_nothing_of_its_own(service):
    """A command has no trace of the unit: neither its variables, nor its score, nor its cgroup."""
    script = "env; cat /proc/self/oom_score_adj /proc/self/cgroup"
    said = service.controller(f"print(output(connected(), 'sh', '-c', {script!r})[1])").stdout
    lines = said.splitlines()
    names = {line.partition("=")[0] for line in lines}
    unwanted = ("NOTIFY_SOCKET", "LISTEN_PID", "WATCHDOG_USEC", "INVOCATION_ID", "STATE_DIRECTORY", "JOURNAL_STREAM")
    assert names.isdisjoint(unwanted)
    assert "0" in lines
    assert any("/pyinfra-agent.service/command-" in line for line in lines)
    assert service.show("OOMScoreAdjust") == "-900"  # not every kernel in a container lets systemd keep that


def test_silent_agent_is_replaced(service):
    """An agent that hangs does not feed the watchdog, which ends it; its successor serves."""
    drop_in(service, "[Service]\nWatchdogSec=1\n")
    before = service.pid
    time.sleep(1.5)
    assert service.pid == before
    service.systemctl("kill", "--kill-who=main", "--signal=STOP", "pyinfra-agent")
    eventually(lambda: service.pid not in (0, before), 10, "a new agent")
    eventually(lambda: service.show("ActiveState") == "active", 10, "readiness")
    assert service.show("Result") == "success" or "watchdog" in service.systemctl("status", "pyinfra-agent").stdout
    service.serves()


def test_stop_lets_requests_end_and_refuses_new_ones(service):
    """SIGTERM: the command under way ends in its own time and its result arrives; then the agent is gone."""
    running = service.start_controller(SLOW, stdout=subprocess.PIPE, text=True)
    eventually(lambda: service.processes("sleep", "2"), 10, "the command")
    service.systemctl("stop", "pyinfra-agent")
    assert running.communicate(timeout=20)[0] == "(0, 'begun\\nended\\n')\n"
    assert service.show("Result") == "success"
    assert service.show("ActiveState") == "inactive"


def test_second_sigterm_ends_at_once(service):
    running = service.start_controller(
        SLOW.replace("sleep 2", "sleep 9"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        eventually(lambda: service.processes("sleep", "9"), 10, "the command")
        service.systemctl("stop", "--no-block", "pyinfra-agent")
        eventually(lambda: service.show("StatusText").startswith("stopping"), 5, "the first signal")
        started = time.monotonic()
        service.systemctl("kill", "--kill-who=main", "--signal=TERM", "pyinfra-agent")
        eventually(lambda: service.show("ActiveState") != "deactivating", 5, "the end")
        assert time.monotonic() - started < 2
        assert service.processes("sleep", "9"), "the command died with the agent"
    finally:
        running.kill()
        running.communicate()


def test_stop_takes_as_long_as_the_configuration_says(machine):
    """`stop` in agent.toml counts even if it is longer than the unit's TimeoutStopSec=."""
    machine.configure("stop = 30\n")
    machine.install()
    drop_in(machine, "[Service]\nTimeoutStopSec=1\n")
    running = machine.start_controller(SLOW.replace("sleep 2", "sleep 3"), stdout=subprocess.PIPE, text=True)
    eventually(lambda: machine.processes("sleep", "3"), 10, "the command")
    machine.systemctl("stop", "pyinfra-agent")
    assert running.communicate(timeout=20)[0] == "(0, 'begun\\nended\\n')\n"
    assert machine.show("Result") == "success"


def test_failed_start_is_tried_again_until_its_cause_is_gone(service):
    """Not even ten failures in a row make systemd give up."""
    service.configure("no such key")
    service.systemctl("restart", "pyinfra-agent", check=False)
    eventually(lambda: int(service.show("NRestarts")) >= 10, 60, "ten restarts")
    service.configure("")
    eventually(lambda: service.show("ActiveState") == "active", 60, "the agent's return")
    service.serves()


def test_signals_are_named_in_the_journal(service):
    service.systemctl("stop", "pyinfra-agent")
    assert f"stopping signal={signal.Signals.SIGTERM.name}" in service.journal
