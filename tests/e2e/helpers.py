"""Real agents, real controllers and a few machines that are no agent: what the tests of the whole are made of."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_connector.client import AgentClient

BIN = Path(sys.executable).parent
AGENT = BIN / "pyinfra-agent"
PYINFRA = BIN / "pyinfra"

START_SECONDS = 15
RUN_SECONDS = 30
CONNECT_SECONDS = 3
RESUME_SECONDS = 2

# What pyinfra itself prints around a failure; the rest is ours to answer for.
_FRAMING = re.compile(
    r"\s*$"
    r"|--> (Loading|Connecting|Disconnecting|Preparing|Skipping|Beginning|Starting operation|Results:)"
    r"|--> pyinfra error: No hosts remaining!"
    r"|    \[@[^ ]+\] (Connected|Ready: .*|Success|Error: executed .*)$"
)


def clean_environment(**more):
    """Return the environment without what would point a test at the user's own keys."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYINFRA_AGENT_", "XDG_"))}
    return kept | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"} | more


@dataclass(frozen=True)
class Run:
    """A process that has ended."""

    status: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def text(self):
        return f"{self.stdout}{self.stderr}"

    @property
    def said(self):
        """The lines that are not pyinfra's own framing."""
        return [line.strip() for line in self.text.splitlines() if not _FRAMING.match(line)]


def run(*command, seconds=RUN_SECONDS, **options):
    """Run *command* to its end; it is killed, and the test fails, after *seconds*."""
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("env", clean_environment())
    started = time.monotonic()
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=seconds, check=False, **options
    )
    return Run(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


def eventually(condition, seconds=10.0, what="the condition"):
    """Return the first true value of *condition*, or fail after *seconds*."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        time.sleep(0.02)
    return value


def failed_with(run, *fragments):
    """Assert that *run* failed with one line that holds all of *fragments*, and without a traceback."""
    assert run.status != 0, run.text
    assert "Traceback" not in run.text, run.text
    assert len(run.said) == 1, f"not one line: {run.said}"
    for fragment in fragments:
        assert fragment in run.said[0], f"{fragment!r} is not in {run.said[0]!r}"


@dataclass
class Controller:
    """One user who runs pyinfra: a home of keys of their own, and a directory to run in."""

    home: Path
    directory: Path

    def __post_init__(self):
        self.directory.mkdir(parents=True, exist_ok=True)

    @property
    def environment(self):
        return clean_environment(PYINFRA_AGENT_HOME=str(self.home))

    def identity(self):
        printed = run(AGENT, "identity", env=self.environment)
        assert printed.status == 0, printed.text
        return printed.stdout.strip()

    @staticmethod
    def _words(inventory, words, data):
        settings = {"agent_connect_timeout": CONNECT_SECONDS, "agent_resume_timeout": RESUME_SECONDS} | data
        options = [word for name, value in settings.items() for word in ("--data", f"{name}={value}")]
        return [str(word) for word in (PYINFRA, "-y", inventory, *options, *words)]

    def pyinfra(self, inventory, *words, seconds=RUN_SECONDS, **data):
        """Run pyinfra's command; *data* is host data."""
        return run(*self._words(inventory, words, data), seconds=seconds, cwd=self.directory, env=self.environment)

    def start_pyinfra(self, inventory, *words, **data):
        """Start pyinfra's command and return the process."""
        return subprocess.Popen(
            self._words(inventory, words, data),
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python(self, script, *arguments, seconds=RUN_SECONDS):
        """Run a Python *script* as this user."""
        return run(sys.executable, "-c", script, *arguments, seconds=seconds, cwd=self.directory, env=self.environment)


def finish(process, seconds=RUN_SECONDS):
    """Wait for a started pyinfra and return what came of it."""
    started = time.monotonic()
    stdout, stderr = process.communicate(timeout=seconds)
    return Run(process.returncode, stdout, stderr, time.monotonic() - started)


@dataclass
class Agent:
    """A `pyinfra-agent serve` that runs; `host` is where it is reached."""

    process: subprocess.Popen
    state_dir: Path
    log: Path
    port: int
    host: str = "127.0.0.1"

    @property
    def name(self):
        return f"@agent/{self.host}:{self.port}"

    @property
    def address(self):
        return (self.host, self.port)

    def authorize(self, controller):
        done = run(AGENT, "authorize", "--state-dir", self.state_dir, controller.identity())
        assert done.status == 0, done.text

    def serves(self, controller):
        """Assert that *controller* is let in and served at once."""
        client = AgentClient(
            self.host,
            self.port,
            identity=load_or_create(controller.home),
            check_key=lambda *_: None,
            connect_seconds=CONNECT_SECONDS,
        )
        said = []
        started = time.monotonic()
        client.connect()
        try:
            assert client.run(["echo", "served"], on_output=lambda stream, data: said.append(data)).exit == 0
        finally:
            client.close()
        assert b"".join(said) == b"served\n"
        assert time.monotonic() - started < 2

    def kib(self, name="VmRSS"):
        """Return a size from /proc/PID/status, in KiB."""
        return kib_of(self.process.pid, name)

    @property
    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self, number=signal.SIGTERM, seconds=15):
        """Send a signal and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(seconds)


def kib_of(pid, name):
    """Return a size that /proc knows of the process *pid*, in KiB."""
    return int(re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1])


def reset_peak(pid):
    """Let the peak memory (VmHWM) of *pid* begin anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@dataclass
class Lab:
    """Makes agents and controllers, and ends whatever is left of them."""

    directory: Path
    _agents: list = field(default_factory=list)
    _processes: list = field(default_factory=list)

    def controller(self, name="alice"):
        return Controller(self.directory / f"{name}-home", self.directory / f"{name}-work")

    def agent(self, *controllers, state="state", listen="127.0.0.1:0", prefix=()):
        """Start an agent that lets *controllers* in; returns when it listens."""
        state_dir = self.directory / state
        log = self.directory / f"agent-{len(self._agents)}.log"
        words = [*prefix, AGENT, "serve", "--listen", listen, "--state-dir", state_dir, "--no-announce"]
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                list(map(str, words)), stdin=subprocess.DEVNULL, stderr=stderr, env=clean_environment()
            )
        agent = Agent(process, state_dir, log, 0)
        self._agents.append(agent)

        def listens():
            assert process.poll() is None, log.read_text()
            return re.search(r"listening address=\S+:(\d+) ", log.read_text())

        agent.port = int(eventually(listens, START_SECONDS, "listening")[1])
        for controller in controllers:
            agent.authorize(controller)
        return agent

    def keep(self, process):
        """End *process*, too, when the test is over."""
        self._processes.append(process)
        return process

    def close(self):
        for process in (*self._processes, *(agent.process for agent in self._agents)):
            for child in _descendants(process.pid) if process.poll() is None else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            if process.poll() is None:
                process.kill()
            process.wait(10)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def _descendants(pid):
    found = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


@contextlib.contextmanager
def server_that(behave):
    """Listen on 127.0.0.1 and *behave* (a function of the connected socket) to each that comes; yields the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections = []

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            with contextlib.suppress(OSError):
                behave(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        # A close alone would not wake accept() in the other thread.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for connection in connections:
            connection.close()


def free_port():
    """Return a port on 127.0.0.1 on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
