"""Real agents inside network namespaces, each with a host name and a configuration of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from pyinfra_agent_protocol.keys import parse_public
from tests.discovery.lab import AGENT_PORT, ROOT
from tests.e2e.helpers import AGENT, START_SECONDS, clean_environment, eventually, kib_of, run

_NAMED = 'hostname "$0" && exec "$@"'


class Serving:
    """`pyinfra-agent serve` as the machine *name*, in *namespace*."""

    def __init__(self, namespace, directory, name, *options, program=None, listen=f":{AGENT_PORT}", **config):
        self.namespace = namespace
        self.directory = directory / name if not (directory / name).exists() else directory / f"{name}-{time.time_ns()}"
        self.directory.mkdir()
        self.state_dir = self.directory / "state"
        self.log = self.directory / "log"
        file = self.directory / "agent.toml"
        # JSON is TOML where there are no tables within; the one that there can be comes as text.
        values = {"listen": listen, "state_dir": str(self.state_dir), **config}
        file.write_text("".join(f"{key} = {as_toml(value)}\n" for key, value in values.items()))
        words = [AGENT] if program is None else [sys.executable, "-c", program]
        with self.log.open("wb") as stderr:
            self.process = namespace.start(
                *("unshare", "--uts", "sh", "-c", _NAMED, name),
                *map(str, [*words, "serve", "--config", file, *options]),
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                env=clean_environment(PYTHONPATH=str(ROOT)),
            )
        self.says("listening")

    @property
    def said(self):
        return self.log.read_text()

    @property
    def key_line(self):
        return run(AGENT, "key", "--state-dir", self.state_dir).stdout.strip()

    @property
    def key(self):
        return parse_public(self.key_line).key

    @property
    def kib(self):
        return kib_of(self.process.pid, "VmRSS")

    @property
    def cpu_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def says(self, event, seconds=START_SECONDS, times=1):
        """Return the words of the last of so many lines about *event*, once it is there."""

        def found():
            assert self.process.poll() is None or event in self.said, self.said
            lines = re.findall(rf"^\S+ {event} (.*)$", self.said, re.MULTILINE)
            return lines[times - 1 :]

        return eventually(found, seconds, f"{event} in {self.said}")[0]

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(15)

    def kill(self):
        self.process.kill()
        self.process.wait()


def as_toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)
