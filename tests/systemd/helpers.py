"""The agent as `pyinfra-agent install` makes it a service of a container, and a controller on its network."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.helpers import clean_environment, eventually

if TYPE_CHECKING:
    import subprocess

    from tests.containers import Container, Lab

SOAK = os.environ.get("PYINFRA_AGENT_SOAK") == "1"
CHECKOUT = Path(__file__).parents[2]
AGENT = (sys.executable, "-I", "-m", "pyinfra_agent")
PORT = 7963

#: What every script of a controller begins with; its first argument is the agent's address.
_PRELUDE = """\
import sys, time
from pathlib import Path
from pyinfra_agent_connector._errors import ConnectionLost, Unreachable
from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_connector.client import AgentClient

def client(**options):
    identity = load_or_create(Path(sys.argv[2]))
    return AgentClient(sys.argv[1], 7963, identity=identity, check_key=lambda *_: None, **options)

def connected(**options):
    made = client(**options)
    made.connect()
    return made

def output(made, *argv, **options):
    said = []
    result = made.run(list(argv), on_output=lambda stream, data: said.append(data), **options)
    return result.exit, b"".join(said).decode()

"""


class Machine:
    """A container in which the agent may be installed."""

    def __init__(self, lab: Lab, container: Container, home: Path) -> None:
        self.lab = lab
        self.container = container
        self.address = container.address
        self._home = home
        self._started: list[subprocess.Popen] = []

    def close(self):
        """End the controllers that a test started."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait(10)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    # --- on the target ---

    def run(self, *command, **options):
        return self.container.run(*command, **options)

    def agent(self, *words, **options):
        """Run the `pyinfra-agent` command on the target."""
        return self.run(*AGENT, *words, **options)

    def install(self, *words):
        done = self.agent("install", *words)
        assert done.status == 0, f"{done}\n{self.journal}"
        self.authorize()
        return done

    def authorize(self):
        owner = self.run("stat", "--format=%U", "/var/lib/pyinfra-agent", check=True).stdout.strip()
        words = [*AGENT, "authorize", "--state-dir", "/var/lib/pyinfra-agent", self.identity()]
        self.run("runuser", "-u", owner, "--", *words, check=True)

    def configure(self, text):
        directory = self.container.path("/etc/pyinfra-agent")
        directory.mkdir(exist_ok=True)
        (directory / "agent.toml").write_text(text)

    def systemctl(self, *words, **options):
        return self.run("systemctl", *words, **({"check": True} | options))

    def show(self, name, unit="pyinfra-agent.service"):
        return self.systemctl("show", "--value", "--property", name, unit).stdout.strip()

    @property
    def pid(self):
        """The agent's process id in the container; 0 while it does not run."""
        return int(self.show("MainPID"))

    @property
    def journal(self):
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit=pyinfra-agent").stdout

    def status(self):
        """What the agent reports of itself; None if it does not answer."""
        done = self.agent("status", "--json")
        return json.loads(done.stdout) if done.status == 0 else None

    def serves(self):
        """Assert that the controller is served."""
        assert self.controller("print(output(connected(), 'echo', 'served'))").stdout == "(0, 'served\\n')\n"

    def processes(self, *words):
        """Return the ids of the processes in the container with exactly these words."""
        wanted = b"".join(word.encode() + b"\0" for word in words)
        found = []
        for process in self.container.path("/proc").glob("[0-9]*"):
            try:
                if (process / "cmdline").read_bytes() == wanted:
                    found.append(int(process.name))
            except OSError:
                continue
        return found

    # --- the controller ---

    @property
    def _environment(self):
        return clean_environment(PYINFRA_AGENT_HOME=str(self._home))

    def identity(self):
        script = "import sys; from pyinfra_agent_connector.commands import identity; sys.exit(identity([]))"
        return self.lab.run(sys.executable, "-c", script, env=self._environment, check=True).stdout.strip()

    def _script(self, script, arguments):
        return (sys.executable, "-c", _PRELUDE + script, self.address, self._home, *arguments)

    def controller(self, script, *arguments, seconds=30):
        """Run *script* on the controller's side, to its end; `sys.argv[3:]` are the *arguments*."""
        done = self.lab.run(*self._script(script, arguments), env=self._environment, cwd=CHECKOUT, seconds=seconds)
        assert done.status == 0, f"{done.stdout}{done.stderr}\n{self.journal}"
        return done

    def start_controller(self, script, *arguments, **options):
        """Start *script* on the controller's side."""
        words = self._script(script, arguments)
        process = self.lab.popen(*words, env=self._environment, cwd=CHECKOUT, **options)
        self._started.append(process)
        return process


__all__ = ["AGENT", "CHECKOUT", "PORT", "SOAK", "Machine", "eventually"]
