"""A restart of the agent in the middle of a deploy: commands live on, and their controller sees a pause."""

from __future__ import annotations

import json
import sys

from tests.systemd.helpers import SOAK, eventually

#: Runs a command that prints numbered lines, one that answers what it reads, and one in a terminal; restarts the agent
#: through itself meanwhile; prints what came of it all.
DEPLOY = """
import gevent, gevent.event, json

made = connected(resume_seconds=30)
ROUNDS, RESTART, LAST = int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
over = gevent.event.Event()
took, pids, waits = [], [], []

def lines():
    said, when = [], []
    def take(stream, data):
        said.append(data)
        when.append(time.monotonic())
    script = f'i=0; while [ $i -lt {LAST} ]; do i=$((i+1)); echo line $i; sleep 0.01; done; exit 7'
    ended = made.run(["sh", "-c", script], on_output=take)
    waits.append(max(after - before for before, after in zip(when, when[1:])))
    return ended.exit, b"".join(said).decode() == "".join(f"line {i}\\n" for i in range(1, LAST + 1))

def echoes():
    sent = []
    def feed():
        while not over.is_set():
            sent.append(b"%06d\\n" % len(sent) * 100)
            yield sent[-1]
            gevent.sleep(0.002)
    said = []
    ended = made.run(["sh", "-c", "cat; exit 8"], stdin=feed(), on_output=lambda stream, data: said.append(data))
    return ended.exit, b"".join(said) == b"".join(sent), len(sent) > 100

def terminal():
    said = []
    script = "tty >/dev/null || exit 1; read -r line; sleep 0.2; echo got $line; exit 9"
    def feed():
        over.wait()
        yield b"typed\\n"
    from pyinfra_agent_protocol import PtySize
    take = lambda stream, data: said.append(data)
    ended = made.run(["sh", "-c", script], stdin=feed(), pty=PtySize(24, 80), on_output=take)
    return ended.exit, b"got typed" in b"".join(said)

def late():
    ended = made.run(["sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.05; done"], timeout_seconds=LAST / 100)
    return ended.exit, ended.reason

jobs = [gevent.spawn(job) for job in (lines, echoes, terminal, late)]
gevent.sleep(0.3)
for _ in range(ROUNDS):
    began = time.monotonic()
    ended = made.run(["sh", "-c", RESTART])
    assert ended.exit == 0, ended
    took.append(time.monotonic() - began)
    pids.append(output(made, "systemctl", "show", "--value", "-p", "MainPID", "pyinfra-agent")[1].strip())
over.set()
print(json.dumps({"jobs": [job.get(timeout=100) for job in jobs], "pids": pids, "took": took, "pause": max(waits)}))
"""

#: What the jobs above return if nothing was lost.
EXACT = [[7, True], [8, True, True], [9, True], [5, "timeout"]]


def deployed(machine, restart, rounds, last):
    done = machine.controller(DEPLOY, str(rounds), restart, str(last), seconds=120)
    return json.loads(done.stdout)


def test_commands_go_on_over_restarts_that_they_ask_for(service):
    """Twenty restarts in a row by the deploy itself: output, input, terminal and exit statuses are exact."""
    rounds = 40 if SOAK else 20
    before = service.pid
    found = deployed(service, "systemctl restart pyinfra-agent", rounds, 500)
    assert found["jobs"] == EXACT, service.journal
    assert len({before, *map(int, found["pids"])}) == rounds + 1
    assert found["pause"] < 2
    assert "not-handed-over" not in service.journal
    assert "refused" not in service.journal


def test_commands_go_on_over_an_agent_that_executes_itself_anew(service):
    """The process stays, and with it its children; everything else is as after a restart."""
    before = service.pid
    again = "systemctl kill --kill-whom=main --signal=SIGUSR2 pyinfra-agent && sleep 0.3"
    found = deployed(service, again, 5, 300)
    assert found["jobs"] == EXACT, service.journal
    assert {int(pid) for pid in found["pids"]} == {before}
    assert service.journal.count("taken-over") == 5
    assert found["pause"] < 2


def test_outputs_that_nobody_wants_stay_open_over_a_restart(service):
    """A daemon that a deploy started prints on, although the agent that read it was replaced; it gets no SIGPIPE."""
    daemon = "(for i in $(seq 300); do echo x; sleep 0.01; done; echo alive > /run/daemon) &"
    service.controller("print(output(connected(), 'sh', '-c', sys.argv[3]))", daemon)
    service.systemctl("restart", "pyinfra-agent")
    service.systemctl("restart", "pyinfra-agent")
    eventually(service.container.path("/run/daemon").exists, 20, "the daemon's last word")
    assert service.show("NFileDescriptorStore") == "0"


OPERATIONS = """
from pyinfra.operations import files, server

server.shell(name="before", commands=["echo $PPID > /root/before"])
server.shell(name="starts", commands=["echo one > /root/one"])
server.shell(
    name="restarts",
    commands=["for i in 1 2 3 4 5; do echo line $i; systemctl restart pyinfra-agent; done; echo line 6 > /root/six"],
)
files.line(name="after", path="/root/one", line="two")
"""


def test_pyinfra_deploy_goes_on_after_the_operation_that_restarts_the_agent(service, tmp_path):
    """Its third operation restarts the agent five times; each operation succeeds, and is carried out once."""
    (tmp_path / "deploy.py").write_text(OPERATIONS)
    before = service.pid
    words = [sys.executable, "-m", "pyinfra", "-y", "-vvv", f"@agent/{service.address}", tmp_path / "deploy.py"]
    done = service.lab.run(*words, env=service._environment, cwd=tmp_path, seconds=60)
    assert done.status == 0, f"{done.stdout}{done.stderr}{service.journal}"
    assert service.pid != before
    assert service.container.path("/root/six").read_text() == "line 6\n"
    assert service.container.path("/root/one").read_text() == "one\ntwo\n"
    assert [f"line {number}" in done.stdout + done.stderr for number in range(1, 6)] == [True] * 5
