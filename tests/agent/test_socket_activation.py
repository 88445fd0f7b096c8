"""Sockets that came with the start: the listening ones of TCP are ours, and nothing else is touched."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import os, socket, sys
held = [socket.create_server(("127.0.0.1", 0)), socket.socket(), *socket.socketpair(), open("/dev/null")]
for place, kept in enumerate(held):
    os.dup2(os.dup(kept.fileno()), 50 + place)
for place in range(len(held)):
    os.dup2(50 + place, 3 + place)
address = held[0].getsockname()
import trio
from pyinfra_agent._socket_activation import passed_listeners
environment = {"LISTEN_PID": str(os.getpid() + int(sys.argv[1])), "LISTEN_FDS": "5"}

async def main():
    listeners = passed_listeners(environment)
    print([listener.socket.getsockname() == address for listener in listeners])
    print([os.get_inheritable(number) for number in range(3, 8)])
    os.fstat(7)

trio.run(main)
os._exit(0)
"""


def run(offset):
    words = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(offset)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_listening_socket_is_taken_and_no_command_inherits_any():
    assert run(0) == ["[True]", "[False, False, False, False, False]"]


def test_sockets_of_another_process_are_not_touched():
    assert run(1)[0] == "[]"
