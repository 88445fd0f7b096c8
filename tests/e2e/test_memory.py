"""Memory is bounded whatever flows: a reader that stops costs a blocked pipe, and a file costs the same at any size."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.e2e.helpers import RUN_SECONDS, reset_peak

FLOOD_SECONDS = 10
FLOOD_GROWTH_MAX_KIB = 4 * 1024
TRANSFER_GROWTH_MAX_KIB = 16 * 1024
#: What has arrived and its reader has not taken: several reads from the socket, far less than the window.
WAITING_MAX_BYTES = 1 << 20
LARGE_BYTES = 256 << 20
SMALL_BYTES = 2 << 20
SHARED_MEMORY = Path("/dev/shm")

CLIENT = """
import sys
from pathlib import Path
import gevent
from pyinfra_agent_connector._identity import agent_home, load_or_create
from pyinfra_agent_connector.client import AgentClient

client = AgentClient("127.0.0.1", int(sys.argv[1]), identity=load_or_create(agent_home()), check_key=lambda *_: None)
client.connect()
"""

FLOOD = f"""{CLIENT}
def take_nothing(stream, data):
    print("flooded", flush=True)
    gevent.sleep(600)

client.run(["yes"], on_output=take_nothing)
"""

TRANSFER = f"""{CLIENT}
import re
from pyinfra_agent_connector._call import Call
from pyinfra_agent_connector._files import local_chunks, local_sink

most_waiting = 0
put_data = Call.put_data

def note_waiting(call, event):
    global most_waiting
    put_data(call, event)
    most_waiting = max(most_waiting, sum(len(waiting.data) for waiting in call._inbox))

Call.put_data = note_waiting

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def transfer(how, here, there):
    if how == "put":
        client.put(local_chunks(here), there)
    else:
        with local_sink(here) as write:
            client.get(there, write)

for line in sys.stdin:
    transfer(*line.split())
    print(peak(), most_waiting, flush=True)
client.close()
"""


def start(lab, controller, script, agent):
    return lab.keep(
        subprocess.Popen(
            [sys.executable, "-c", script, str(agent.port)],
            env=controller.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )


def test_agent_whose_controllers_do_not_read_holds_no_more_than_the_window(lab):
    """One controller stops consuming and still acknowledges, the other is stopped as a whole."""
    controller = lab.controller()
    agents = [lab.agent(controller, state=name) for name in ("dozing", "stopped")]
    for agent in agents:
        agent.serves(controller)
    before = [agent.kib() for agent in agents]
    clients = [start(lab, controller, FLOOD, agent) for agent in agents]
    for client in clients:
        assert client.stdout.readline() == "flooded\n"
    clients[1].send_signal(signal.SIGSTOP)

    time.sleep(FLOOD_SECONDS)  # the fact under test is what has not happened by then
    growth = [agent.kib() - resident for agent, resident in zip(agents, before, strict=True)]

    assert max(growth) < FLOOD_GROWTH_MAX_KIB, growth
    for agent, client in zip(agents, clients, strict=True):
        agent.serves(controller)
        client.kill()
        client.wait(5)
    # The commands of a controller that has vanished live on: the end of the lab, which ends their pipes, is theirs.


@pytest.fixture
def shared_memory():
    if not SHARED_MEMORY.is_dir() or shutil.disk_usage(SHARED_MEMORY).free < 3 * LARGE_BYTES:
        pytest.skip("there is no room for large files in /dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="pyinfra-agent-", dir=SHARED_MEMORY))
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("how", ["put", "get"])
def test_transfer_of_a_large_file_takes_no_more_memory_than_that_of_a_small_one(how, shared_memory, lab):
    controller = lab.controller()
    agent = lab.agent(controller)
    small, large, copy = (shared_memory / name for name in ("small", "large", "copy"))
    small.write_bytes(os.urandom(SMALL_BYTES))
    with large.open("wb") as file:
        for _ in range(LARGE_BYTES >> 20):
            file.write(os.urandom(1 << 20))
    client = start(lab, controller, TRANSFER, agent)

    def transfer(path):
        here, there = (path, copy) if how == "put" else (copy, path)
        client.stdin.write(f"{how} {here} {there}\n")
        client.stdin.flush()
        return map(int, client.stdout.readline().split())

    controller_before, _ = transfer(small)
    reset_peak(agent.process.pid)
    agent_before = agent.kib()
    started = time.monotonic()
    controller_after, waiting = transfer(large)

    assert time.monotonic() - started < RUN_SECONDS
    assert subprocess.run(["cmp", large, copy], check=False).returncode == 0
    assert controller_after - controller_before <= TRANSFER_GROWTH_MAX_KIB
    assert waiting <= WAITING_MAX_BYTES
    assert agent.kib("VmHWM") - agent_before <= TRANSFER_GROWTH_MAX_KIB
    client.stdin.close()
    assert client.wait(5) == 0
