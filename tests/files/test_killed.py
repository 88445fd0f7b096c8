"""kill -9 of either side at any moment of an upload: the target is the old file or the new one, and nothing is left."""

from __future__ import annotations

import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time

import pytest

from tests.e2e.helpers import clean_environment, eventually, free_port
from tests.files.helpers import MIB, mounted, times

UPLOADS = times(100, 1000)
SIZE_BYTES = 2 * MIB

# A process that has imported everything, and forks one that does the work for each line that it is told: an agent or a
# controller starts within a few milliseconds, and is killed without the rest.
_FORKS = """
import os, sys
{imports}

def work(*words):
{work}

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work(*line.split())
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    print(pid, flush=True)
    sys.stdin.readline()  # until then it is a zombie at worst, and its number nobody else's
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

_AGENTS = _FORKS.format(
    imports="""
from pathlib import Path
import trio
from pyinfra_agent._authorized import AuthorizedControllers
from pyinfra_agent._keys import load_or_create_key
from pyinfra_agent._server import Agent, prepare_process
from pyinfra_agent._settings import Settings
real_access = os.access
""",
    work="""
    state, port, temporaries = Path(words[0]), int(words[1]), words[2]
    if temporaries == "named":
        # As where a file cannot be without a name.
        os.access = lambda path, *mode: path != "/proc/self/fd" and real_access(path, *mode)
    prepare_process()
    key = load_or_create_key(state)
    agent = Agent(Settings(state_dir=state, session_ttl_seconds=0.2), key, AuthorizedControllers(state))

    async def run():
        await agent.run(await trio.open_tcp_listeners(port, host="127.0.0.1"))

    trio.run(run)
""",
)

_CONTROLLERS = _FORKS.format(
    imports="""
from pathlib import Path
import gevent
from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_connector.client import AgentClient
""",
    work="""
    home, port, source, target = words
    client = AgentClient(
        "127.0.0.1", int(port), identity=load_or_create(Path(home)), check_key=lambda *_: None, resume_seconds=0.5
    )
    client.connect()
    with open(source, "rb") as file:
        client.put(iter(lambda: file.read(65_280), b""), target)
    client.close()
""",
)


class Forks:
    """One kind of process that is started often."""

    def __init__(self, program):
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=clean_environment(),
        )
        self._pid = None

    def start(self, *words):
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        self._pid = int(self._process.stdout.readline())

    def kill(self):
        os.kill(self._pid, signal.SIGKILL)

    def wait(self):
        """Return the exit status, negative after a signal."""
        self._pid = None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self):
        if self._pid is not None:
            self.kill()
            self.wait()
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


class Bench:
    """An agent, a controller and a directory of targets."""

    def __init__(self, lab, directory):
        self.directory = directory
        self.source = lab.directory / "source"
        self._controller = lab.controller()
        # Its first start makes the key and lets the controller in.
        started = lab.agent(self._controller)
        started.stop()
        self._state = started.state_dir
        self._port = free_port()
        self.agents = Forks(_AGENTS)
        self.controllers = Forks(_CONTROLLERS)

    def start_agent(self, temporaries):
        self.agents.start(self._state, self._port, temporaries)

        def answers():
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self._port)) == 0

        eventually(answers, what="the agent")

    def start_upload(self, target):
        self.controllers.start(self._controller.home, self._port, self.source, self.directory / target)

    def litter(self):
        return [name for name in os.listdir(self.directory) if name.startswith(".pyinfra-agent")]

    def close(self):
        self.controllers.close()
        self.agents.close()


TARGETS = {
    "file": ("agent", "controller"),
    "link": ("agent", "controller"),
    "new": ("agent", "controller"),
    # Written in place, as cp does, which only the end of the agent itself could interrupt.
    "hard link": ("controller",),
}


def read(path):
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


@pytest.mark.parametrize("where", ["disk", "tmpfs"])
def test_upload_whose_agent_or_controller_is_killed_leaves_the_old_or_the_new_file(where, lab, tmp_path):
    directory = tmp_path / "targets"
    directory.mkdir()
    rng = random.Random(where)
    if where == "tmpfs":
        if os.geteuid() != 0:
            pytest.skip("needs root, to mount a tmpfs")
        with mounted("-t", "tmpfs", "none", str(directory)):
            kill_at_random(lab, directory, rng)
    else:
        kill_at_random(lab, directory, rng)


def kill_at_random(lab, directory, rng):
    bench = Bench(lab, directory)
    try:
        bench.start_agent("unnamed")
        (directory / "end").write_bytes(b"old")
        (directory / "link").symlink_to("end")
        (directory / "file").write_bytes(b"old")
        (directory / "hard_link").write_bytes(b"old")
        os.link(directory / "hard_link", directory / "other_name")
        lasts = statistics.median(whole_upload(bench, rng) for _ in range(5))
        ended = {"killed": 0, "old": 0, "new": 0}
        sent = {}
        for _ in range(UPLOADS // 2):
            target = rng.choice(tuple(TARGETS))
            victim = rng.choice(TARGETS[target])
            path = directory / target.replace(" ", "_")
            if target == "new":
                path.unlink(missing_ok=True)
            old, new = read(path), rng.randbytes(rng.randrange(SIZE_BYTES))
            # What an upload before this one has brought may get its place only now.
            whole = (old, new, sent.get(path))
            sent[path] = new
            bench.source.write_bytes(new)

            bench.start_upload(path.name)
            time.sleep(rng.uniform(0, 1.2 * lasts))
            killed = bench.agents if victim == "agent" else bench.controllers
            killed.kill()
            status = killed.wait()
            if victim == "agent":
                ended["killed"] += bench.controllers.wait() != 0
                left = read(path)
                bench.start_agent(rng.choice(["named", "unnamed"]))
                assert bench.litter() == [], "a start has not swept what the killed agent left"
            else:
                ended["killed"] += status == -signal.SIGKILL
                # Half a transfer is given up with its session, a whole one is finished.
                eventually(lambda: not bench.litter(), what="the end of the session")
                if target == "hard link":
                    eventually(lambda path=path, whole=whole: read(path) in whole, what="the end of the writing")
                left = read(path)
            assert left in whole, f"{target}: {victim} killed, {len(left or b'')} bytes of {len(new)} are there"
            ended["new" if left == new else "old"] += 1
        assert (directory / "link").is_symlink()
        assert (directory / "hard_link").stat().st_nlink == 2
    finally:
        bench.close()
    print(f"uploads: {ended}, of {lasts * 1000:.0f} ms each")
    assert ended["old"] > UPLOADS // 20, "hardly any was killed before its end"


def whole_upload(bench, rng):
    bench.source.write_bytes(rng.randbytes(SIZE_BYTES))
    began = time.monotonic()
    bench.start_upload("file")
    assert bench.controllers.wait() == 0
    return time.monotonic() - began
