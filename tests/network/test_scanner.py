"""Somebody opens connections as fast as he can; who is let in gets in all the same, from 50 ms away."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.network.wire import AGENT_ADDRESS, DEVICE, network

TRIES = 5
#: Connections a second; one that opens them one after the other, with nothing in between, reaches ten times as many.
SCANNER_LEAST = 500
#: On the controller's /64, and on another one.
AGENT_6 = "2001:db8:0:2::2"
CONTROLLER_6 = "2001:db8:0:1::1"
NEIGHBOUR_6 = "2001:db8:0:1::77"
STRANGER_4 = "192.0.2.99"

# Opens and forgets: at most as many at a time as it has descriptors, so the oldest are closed. Or it says in each what
# a controller says first, and makes the agent answer.
SCANNER = """
import collections, os, resource, socket, sys, time
source, address, port, says = sys.argv[1], sys.argv[2], int(sys.argv[3]), bytes.fromhex(sys.argv[4])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
held = collections.deque()
count, said = 0, time.monotonic()
while True:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
    except OSError:
        pass
    sock.bind((source, 0))
    sock.settimeout(0.05 if says else 0)
    try:
        sock.connect((address, port))
        if says:
            sock.send(says + os.urandom(32))
    except BlockingIOError:
        pass
    except OSError:
        time.sleep(0.001)
    held.append(sock)
    count += 1
    if len(held) > (1000 if says else 3000):
        # Reset, or the ports would be used up by TIME_WAIT.
        old = held.popleft()
        old.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
        old.close()
    if time.monotonic() - said >= 0.5:
        print(int(count / (time.monotonic() - said)), flush=True)
        count, said = 0, time.monotonic()
"""

#: A preface that offers both suites; message 1 is any 32 bytes.
PREFACE = b"pyinfra-agent\x01\x02\x02\x01"

# Connects, is welcomed, and closes; each time with one call, as pyinfra does.
CONTROLLER = """
import sys, time
from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_connector.client import AgentClient
from pathlib import Path
home, host, port, tries = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
identity = load_or_create(home)
for _ in range(tries):
    started = time.monotonic()
    client = AgentClient(host, port, identity=identity, check_key=lambda *_: None)
    client.connect()
    print(round(time.monotonic() - started, 3), flush=True)
    client.close()
"""


@pytest.fixture
def net():
    with network(delay_seconds=0.025) as net:
        yield net


@pytest.fixture
def agent(net, lab, controller):
    for prefix, address in ((net.on_controller, CONTROLLER_6), (net.on_agent, AGENT_6)):
        prefix("ip", "addr", "add", f"{address}/128", "dev", DEVICE, "nodad")
    net.on_controller("ip", "route", "add", f"{AGENT_6}/128", "dev", DEVICE)
    net.on_agent("ip", "route", "add", f"{CONTROLLER_6}/128", "dev", DEVICE)
    for address in (f"{STRANGER_4}/32", f"{NEIGHBOUR_6}/128"):
        net.on_agent("ip", "addr", "add", address, "dev", "lo")
    net.on_agent("sysctl", "-q", "-w", "net.ipv4.tcp_syncookies=1")
    return lambda listen: lab.agent(controller, listen=listen, prefix=net.agent)


@pytest.mark.parametrize(
    ("source", "target", "listen", "says", "seconds"),
    [
        (STRANGER_4, AGENT_ADDRESS, "0.0.0.0:0", b"", 1.0),
        (STRANGER_4, AGENT_ADDRESS, "0.0.0.0:0", PREFACE, 1.0),
        (NEIGHBOUR_6, AGENT_6, "[::]:0", b"", 5.0),
    ],
    ids=["silent at another address", "speaking at another address", "silent on the same /64"],
)
def test_scanner_keeps_nobody_out_who_is_let_in(net, lab, controller, agent, source, target, listen, says, seconds):
    """Every connect of a controller 50 ms away succeeds in time."""
    agent = agent(listen)
    words = [*net.agent, sys.executable, "-c", SCANNER, source, target, str(agent.port), says.hex()]
    scanner = lab.keep(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
    assert scanner.stdout is not None
    for _ in range(2):
        scanner.stdout.readline()
    words = [*net.controller, sys.executable, "-c", CONTROLLER, controller.home, target, agent.port, TRIES]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120, check=False)
    scanner.kill()
    rates = list(map(int, re.findall(r"^\d+$", scanner.stdout.read(), re.MULTILINE)))
    print(f"{source}: {rates} connections a second; seconds to be welcomed: {done.stdout.split()}")
    assert rates, "the scanner was at work"
    assert max(rates) > SCANNER_LEAST, "and not slowly"
    assert done.returncode == 0, done.stdout + done.stderr
    took = list(map(float, done.stdout.split()))
    assert len(took) == TRIES
    assert max(took) <= seconds, done.stdout
