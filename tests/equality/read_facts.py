"""Read every fact through @local and @agent/loopback, in this process, and write what came of it to stdout as JSON.

    read_facts.py

A list, one item for each reading: `name` and `arguments`, and for each of `local` and `agent`: `value` (in a form that
is equal only if the value was), `kept` (what must be equal of a value that moves, else all of it), `is_empty`, `error`
(the exception by which the fact gave up), and `runs`, the commands that it took: `status`, how each ended, `stdout` and
`stderr`, the bytes that came from the command (as Latin-1, for JSON has no bytes), and `lines`, what the connector made
of them for pyinfra to parse, those of stdout and those of stderr.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
from datetime import datetime

from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all, disconnect_all
from pyinfra.api.facts import get_fact
from pyinfra.connectors import local
from pyinfra.connectors import util as connectors_util
from pyinfra.context import ctx_config, ctx_host, ctx_state
from pyinfra.facts.crontab import CrontabFile
from pyinfra.facts.server import KernelModules

from pyinfra_agent_connector._output import LazyCommandOutput
from pyinfra_agent_connector.faces import v3
from tests.equality.facts import MOVING, PLACE, readings

HOSTS = {"local": "@local", "agent": "@agent/loopback"}


def plain(value):
    """Return a value that JSON has, and that is equal for equal values only."""
    if isinstance(value, CrontabFile):
        value = value.commands
    if dataclasses.is_dataclass(value):
        return [type(value).__name__, plain(dataclasses.asdict(value))]
    if isinstance(value, dict):
        return sorted(([plain(key), plain(item)] for key, item in value.items()), key=repr)
    if isinstance(value, set | frozenset):
        return ["set", *sorted(map(plain, value), key=repr)]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    assert value is None or isinstance(value, str | int | float | bool), type(value)
    return value


class Recorder:
    """Stands where both connectors run a command, and notes its exit status and what it wrote.

    @agent keeps the bytes of a command's output. @local does not: they are noted as they come from the pipe.
    """

    def __init__(self):
        self.runs = []
        self._from_pipes = (b"", b"")
        for module in (local, v3):
            module.execute_command_with_sudo_retry = self._noting(module.execute_command_with_sudo_retry)
        connectors_util.read_output_buffers = self._tapping(connectors_util.read_output_buffers)

    def _noting(self, original):
        def noting(host, arguments, execute):
            status, output = original(host, arguments, execute)
            if isinstance(output, LazyCommandOutput):
                stdout, stderr = output.stdout_bytes, output.stderr_bytes
            else:
                stdout, stderr = self._from_pipes
            self.runs.append(
                {
                    "status": status,
                    "stdout": stdout.decode("latin-1"),
                    "stderr": stderr.decode("latin-1"),
                    "lines": [list(output.stdout_lines), list(output.stderr_lines)],
                }
            )
            return status, output

        return noting

    def _tapping(self, original):
        def tapping(stdout, stderr, **options):
            kept = [], []
            try:
                return original(*map(tapped, (stdout, stderr), kept), **options)
            finally:
                self._from_pipes = tuple(map(b"".join, kept))

        return tapping


def tapped(pipe, kept):
    """Yield what comes from *pipe*, and keep it."""
    for data in pipe:
        kept.append(data)
        yield data


def read(state, host, recorder, fact, arguments, keep):
    recorder.runs = []
    value, error = None, None
    with ctx_host.use(host):
        try:
            value = get_fact(state, host, fact, kwargs=arguments, apply_failed_hosts=False)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
    return {
        "value": plain(value),
        "kept": plain(keep(value)) if value else None,
        "is_empty": not value and not isinstance(value, bool),
        "error": error,
        "runs": recorder.runs,
    }


def give_modules():
    """Let the fact see a file of ours: a kernel without modules has none to read, and zfs is never among them."""
    original = KernelModules.command
    KernelModules.command = lambda self: original(self).replace("/proc/modules", f"{PLACE}/modules")


def main():
    os.chdir(PLACE)
    give_modules()
    listener = socket.create_server(("127.0.0.1", 7000))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 7001))
    bound = socket.socket(socket.AF_UNIX)
    bound.bind("socket")
    listener.set_inheritable(False)
    state = State(Inventory((list(HOSTS.values()), {})), Config())
    recorder = Recorder()
    answers = []
    with ctx_state.use(state), ctx_config.use(state.config.copy()):
        connect_all(state)
        hosts = {side: state.inventory.get_host(name) for side, name in HOSTS.items()}
        for name, fact, arguments in readings():
            _, keep = MOVING.get(name, ("", lambda value: value))
            answer = {"name": name, "arguments": arguments}
            for side, host in hosts.items():
                answer[side] = read(state, host, recorder, fact, dict(arguments), keep)
            answers.append(answer)
        disconnect_all(state)
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
