"""A deploy whose result shows whether anything was lost or done twice, run over a wire by pyinfra's own command."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.e2e.helpers import eventually, finish

SOAK = os.environ.get("PYINFRA_AGENT_SOAK") == "1"
FILES = 10
COMMANDS = 20
FILE_BYTES = 20_000
RUN_SECONDS = 90

# 20 s of silence are a lost link for a controller that waits for an answer. With this in front of its command, 2 are.
IMPATIENT = """
import sys
from gevent import monkey
monkey.patch_all()
from pyinfra_agent_connector import _link
_link._KEEPALIVE_SECONDS = (1.0, 0.5)
from pyinfra_cli.main import main
sys.exit(main())
"""

DEPLOY = f"""
from pyinfra.operations import files, server

TARGET = {{target!r}}
for number in range({FILES}):
    files.put(
        name=f"file {{{{number}}}}", src=f"files/{{{{number}}}}", dest=f"{{{{TARGET}}}}/{{{{number}}}}", mode="640"
    )
    for part in range({COMMANDS // FILES}):
        step = number * {COMMANDS // FILES} + part
        server.shell(name=f"step {{{{step}}}}", commands=[f"echo {{{{step}}}} >> {{{{TARGET}}}}/steps; sleep 0.1"])
"""


class Deploy:
    """Ten files and twenty commands for one agent, and what must have come of them."""

    def __init__(self, controller, agent, directory):
        self._controller = controller
        self._agent = agent
        self.target = directory / "target"
        self.target.mkdir()
        self._contents = [os.urandom(FILE_BYTES) for _ in range(FILES)]
        sources = controller.directory / "files"
        sources.mkdir()
        for number, content in enumerate(self._contents):
            (sources / str(number)).write_bytes(content)
        (controller.directory / "deploy.py").write_text(DEPLOY.format(target=str(self.target)))

    def start(self, net, *, impatient=False):
        """Start pyinfra on the controller's side of the wire."""
        command = [sys.executable, "-c", IMPATIENT] if impatient else [sys.executable, "-m", "pyinfra"]
        words = [*net.controller, *command, "-y", self._agent.name, "deploy.py", "--data", "agent_resume_timeout=60"]
        return subprocess.Popen(
            words,
            cwd=self._controller.directory,
            env=self._controller.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_step(self, number):
        """Wait until the deploy has come to a step."""
        eventually(lambda: len(self.steps) > number, RUN_SECONDS, f"step {number}")

    @property
    def steps(self):
        path = self.target / "steps"
        return path.read_text().split() if path.exists() else []

    def check(self, run):
        """Assert that pyinfra succeeded, and that everything was done once and in order."""
        assert run.status == 0, run.text
        assert self.steps == [str(number) for number in range(COMMANDS)]
        for number, content in enumerate(self._contents):
            path = self.target / str(number)
            assert path.read_bytes() == content
            assert path.stat().st_mode & 0o777 == 0o640
        assert len(list(self.target.iterdir())) == FILES + 1


def ended(process):
    """Wait for pyinfra; return what came of it."""
    try:
        return finish(process, RUN_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def count_lost_and_resumed(run):
    """Return how often pyinfra's console says that the connection was lost, and that it was resumed."""
    return run.text.count(" lost ("), run.text.count("resumed: nothing was lost")
