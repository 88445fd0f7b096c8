"""What a long wire costs beyond what TCP itself pays, and what a command costs beside a file."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest

from tests.network.wire import AGENT_ADDRESS

MIB = 1 << 20
ONE_WAY_SECONDS = 0.025
UPLOAD_BYTES = 16 * MIB
REPEATS = 3
UPLOAD_RATIO_MAX = 2.0
LATENCY_RATIO_MAX = 3.0
MEASURE_SECONDS = 60

SINK = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        with connection:
            left = int(sys.argv[2])
            while left:
                left -= len(connection.recv(min(left, 1 << 18)))
            connection.sendall(b"!")
"""

RAW = """
import json, socket, sys, time
seconds = []
content = bytes(int(sys.argv[3]))
for _ in range(int(sys.argv[4])):
    with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
        started = time.monotonic()
        sock.sendall(content)
        assert sock.recv(1)
        seconds.append(time.monotonic() - started)
print(json.dumps(seconds))
"""

CLIENT = """
import json, sys, time
import gevent
from pyinfra_agent_connector._identity import agent_home, load_or_create
from pyinfra_agent_connector.client import AgentClient

def new_client():
    identity = load_or_create(agent_home())
    client = AgentClient(sys.argv[1], int(sys.argv[2]), identity=identity, check_key=lambda *_: None)
    client.connect()
    return client
"""

# A new connection for each: TCP remembers nothing.
UPLOAD = f"""{CLIENT}
seconds = []
chunks = [bytes(1 << 18)] * (int(sys.argv[3]) >> 18)
for _ in range(int(sys.argv[4])):
    client = new_client()
    started = time.monotonic()
    client.put(chunks, sys.argv[5])
    seconds.append(time.monotonic() - started)
    client.close()
print(json.dumps(seconds))
"""

LATENCY = f"""{CLIENT}
def latencies():
    seconds = []
    for _ in range(25):
        started = time.monotonic()
        assert client.run(["true"]).exit == 0
        seconds.append(time.monotonic() - started)
    return seconds

def transfer():
    while True:
        if sys.argv[3] == "put":
            client.put((bytes(1 << 18) for _ in range(64)), sys.argv[4])
        else:
            client.get(sys.argv[4], lambda data: None)

client = new_client()
client.put([bytes(1 << 18)] * 16, sys.argv[4])
quiet = latencies()
transferring = gevent.spawn(transfer)
gevent.sleep(1)
beside = latencies()
assert not transferring.dead
transferring.kill()
client.close()
print(json.dumps([quiet, beside]))
"""


def measured(net, controller, script, *arguments):
    """Run *script* on the controller's side; return what it printed."""
    done = subprocess.run(
        [*net.controller, sys.executable, "-c", script, *map(str, arguments)],
        env=controller.environment,
        capture_output=True,
        text=True,
        timeout=MEASURE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def sink(net, lab):
    """The port of a server on the agent's side that takes as many bytes as an upload has."""
    process = lab.keep(
        subprocess.Popen(
            [*net.agent, sys.executable, "-c", SINK, AGENT_ADDRESS, str(UPLOAD_BYTES)],
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    return int(process.stdout.readline())


def test_upload_over_a_long_wire_takes_no_more_than_twice_what_tcp_takes(net, agent, controller, sink, tmp_path):
    """Windows and acknowledgements of our own do not make a transfer wait for round trips that TCP does not need."""
    net.conditions.delay_seconds = ONE_WAY_SECONDS
    raw = statistics.median(measured(net, controller, RAW, AGENT_ADDRESS, sink, UPLOAD_BYTES, REPEATS))
    upload = statistics.median(
        measured(net, controller, UPLOAD, agent.host, agent.port, UPLOAD_BYTES, REPEATS, tmp_path / "file")
    )
    print(f"{UPLOAD_BYTES // MIB} MiB over 50 ms: raw TCP {raw:.2f} s, put {upload:.2f} s ({upload / raw:.2f} times)")
    assert upload < UPLOAD_RATIO_MAX * raw


@pytest.mark.parametrize("transfer", ["put", "get"])
def test_command_beside_a_transfer_is_answered_soon(transfer, net, agent, controller, tmp_path):
    """The transfer leaves the link to a command as soon as there is one."""
    net.conditions.delay_seconds = ONE_WAY_SECONDS
    net.conditions.bits_per_second = 50e6
    quiet, beside = measured(net, controller, LATENCY, agent.host, agent.port, transfer, tmp_path / "file")
    before, during = statistics.median(quiet), statistics.median(beside)
    worst = max(beside)
    print(
        f"a command over 50 ms and 50 Mbit/s: {before * 1000:.0f} ms; beside a {transfer} {during * 1000:.0f} ms"
        f" ({during / before:.1f} times), at worst {worst * 1000:.0f} ms"
    )
    assert during < LATENCY_RATIO_MAX * before
