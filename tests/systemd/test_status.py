"""`pyinfra-agent status` on a real target."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.systemd.helpers import AGENT, eventually


def test_status_shows_sessions_and_requests_and_no_argv(service):
    script = "output(connected(), 'sh', '-c', 'sleep 60; : secret-word', label='a slow thing')"
    running = service.start_controller(script, stderr=subprocess.PIPE)
    try:
        eventually(lambda: service.processes("sleep", "60"), 10, "the command")
        report = service.status()
        [request] = report["request_list"]
        assert (request["request"], request["label"]) == ("exec", "a slow thing")
        assert 0 < request["age_seconds"] < 20
        assert report["sessions"] == 1
        assert report["session_list"][0]["connected"]
        assert report["received_bytes"] > 0
        assert report["resident_memory_bytes"] > 10 << 20
        shown = service.agent("status").stdout
        assert "a slow thing" in shown
        assert "secret-word" not in shown + str(report)
    finally:
        running.kill()
        running.communicate()
    eventually(lambda: service.status()["sessions_lost"] == 1, 5, "the loss")


def test_metrics_are_in_the_exposition_format(service):
    done = service.agent("status", "--prometheus")
    assert done.status == 0
    for line in done.stdout.splitlines():
        assert re.fullmatch(
            r"# (HELP|TYPE) pyinfra_agent_\w+ .+|pyinfra_agent_\w+(\{version=\"[^\"]*\"\})? [0-9.e+]+", line
        )
    assert "pyinfra_agent_up 1\n" in done.stdout


def test_status_is_refused_to_other_users_and_told_without_an_agent(service):
    done = service.run("runuser", "-u", "nobody", "--", *AGENT, "status", "--state-dir", "/var/lib/pyinfra-agent")
    assert done.status == 1
    assert "only root and the agent's own user" in done.stderr
    service.systemctl("stop", "pyinfra-agent")
    done = service.agent("status")
    assert done.status == 1
    assert "no agent" in done.stderr
    done = service.agent("status", "--prometheus")
    assert (done.status, done.stdout.splitlines()[-1]) == (1, "pyinfra_agent_up 0")


def test_socket_that_others_may_open_still_tells_them_nothing(service):
    """The permissions of the file are not the only fence: who asks is asked for."""
    service.run("chmod", "0777", "/var/lib/pyinfra-agent", "/var/lib/pyinfra-agent/status", check=True)
    ask = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/var/lib/pyinfra-agent/status'); print(s.recv(9))"
    )
    done = service.run("runuser", "-u", "nobody", "--", sys.executable, "-c", ask)
    assert (done.status, done.stdout) == (0, "b''\n")
