"""A deploy with every operation that a container allows leaves through @agent what it leaves through @local."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyinfra.operations
import pytest

from tests.e2e.helpers import AGENT, PYINFRA, clean_environment, eventually, run
from tests.equality.left_out import LEFT_OUT
from tests.equality.trees import differences, written

HERE = Path(__file__).parent
RUN_SECONDS = 120
AGENT_PORT = 7963
WAITED_PORT = 7100

DIFFERENT = {
    r"(etc|var/lib/dpkg|var/cache/debconf)/.*-(old)?": "the copy before the last change, as its tool keeps it",
    r"etc/machine-id": "its own in each container",
    r"etc/hosts|etc/hostname": "made with the name of the container; compared below",
    r"etc/ld\.so\.cache|var/cache/(apt/.*\.bin|ldconfig/.*|man/.*)": "caches, with times in them",
    r"var/log(/.*)?": "logs, with times in them",
    r"var/lib/systemd/(.*/)?(random-seed|timers/.*|catalog/.*|timesync.*)": "the system's own state",
    r"var/lib/apt/periodic/.*": "time stamps",
    r"etc/resolv\.conf\..*": "left by the tool that writes it",
    r".*/\.git/(index|logs/.*|worktrees/[^/]+/(index|logs/.*))": "inode numbers and times, as git notes them",
    r".*/__pycache__(/.*)?": "byte code, with the times of its sources in it",
    r"root/\.(gnupg|cache)(/.*)?": "gpg's sockets and random seed; pip's cache",
    r"var/tmp/systemd-private-.*": "of services that run, by names with a random part",
    r"srv/place/text": "@local copies its own temporary file and that one's mode; compared below",
}
"""Where the trees of two containers differ by themselves, and why."""


UPLOADED_WITHOUT_MODE = "srv/place/text"
"""A new file that the deploy gives no mode: the umask decides through @agent, as it does through @ssh."""


@dataclass
class Side:
    """A container, and how pyinfra reaches it."""

    container: object
    host: str
    start: object
    fetched: Path

    def popen(self):
        """Start the deploy."""
        victim = self.container.run("sh", "-c", "sleep 1000 > /dev/null 2>&1 & echo $!", check=True).stdout.strip()
        data = {"victim": victim, "port": WAITED_PORT, "python": sys.executable, "fetched": self.fetched}
        words = [word for name, value in data.items() for word in ("--data", f"{name}={value}")]
        return self.start(
            *(PYINFRA, "-y", "--json", self.host, HERE / "operations.py", *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def both(sides):
    """Run the deploy on both sides at once; return the outcome of each operation, by its name, for each side."""
    processes = [side.popen() for side in sides]
    answers = [process.communicate(timeout=RUN_SECONDS) for process in processes]
    for process, (stdout, stderr) in zip(processes, answers, strict=True):
        assert process.returncode == 0, f"{stderr}\n{stdout}"
    results = [json.loads(stdout)["results"]["operations"] for stdout, _ in answers]
    return [{operation["name"]: _outcome(operation) for operation in operations} for operations in results]


def _outcome(operation):
    [outcome] = [kind for kind in ("success", "error", "no_change") if operation.get(kind)] or ["none"]
    return outcome


@pytest.fixture(scope="module")
def sides(lab, tmp_path_factory):
    directory = tmp_path_factory.mktemp("operations")
    local, remote = lab.boot("by-local", "by-agent")
    for container in (local, remote):
        container.run("sh", HERE / "operations_setup.sh", sys.executable, check=True)
        container.run("hostname", "original", check=True)
        listener = (sys.executable, "-m", "http.server", str(WAITED_PORT))
        container.run("systemd-run", "--quiet", *listener, check=True)
    environment = clean_environment(PYINFRA_AGENT_HOME=str(directory / "keys"))
    identity = run(AGENT, "identity", env=environment).stdout.strip()
    state = "/run/equality-agent"
    remote.run("install", "-d", "-m700", state, check=True)
    remote.run(AGENT, "authorize", "--state-dir", state, identity, check=True)
    remote.run(
        *("systemd-run", "--quiet", "--unit=equality-agent", "--property=Delegate=yes"),
        *(AGENT, "serve", "--listen", f"0.0.0.0:{AGENT_PORT}", "--state-dir", state, "--no-announce"),
        check=True,
    )
    eventually(lambda: "listening" in remote.run("journalctl", "--unit=equality-agent").stdout, 15, "listening")
    inside = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "USER": "root"}
    local.path("/tmp/fetched").mkdir()
    (directory / "fetched").mkdir()
    return (
        Side(local, "@local", lambda *words, **more: local.popen(*words, env=inside, **more), Path("/tmp/fetched")),
        Side(
            remote,
            f"@agent/{remote.address}:{AGENT_PORT}",
            lambda *words, **more: lab.popen(*words, env=environment, **more),
            directory / "fetched",
        ),
    )


def test_deploy_leaves_the_same_tree_and_finds_nothing_to_do_when_it_runs_again(sides):
    local, _ = sides

    first = both(sides)
    again = both(sides)

    assert first[1] == first[0]
    assert set(first[1].values()) <= {"success", "no_change"}
    assert again[1] == again[0]
    changed = {name for name, outcome in again[1].items() if outcome != "no_change"}
    assert {name for name in changed if not name.startswith("always ")} == set()
    fetched = [side.container.path(side.fetched) if side is local else side.fetched for side in sides]
    assert [(place / "fetched.txt").read_text() for place in fetched] == ["fetched from the machine\n"] * 2
    roots = [side.container.root for side in sides]
    paths = {path for root in roots for path in written(root.with_name("upper"))}
    assert len(paths) > 300
    found = differences(*roots, paths, DIFFERENT)
    assert not found, "\n".join(f"{path}: {left} {right}"[:500] for path, (left, right) in found.items())
    modes = [(root / UPLOADED_WITHOUT_MODE).stat().st_mode & 0o777 for root in roots]
    texts = [(root / UPLOADED_WITHOUT_MODE).read_text() for root in roots]
    assert modes == [0o600, 0o644]
    assert texts == ['é "$HOME" `id`\nno newline at end'] * 2
    for name in ("hosts", "hostname"):
        texts = [
            (root / "etc" / name).read_text().replace(side.container.name, "NAME")
            for root, side in zip(roots, sides, strict=True)
        ]
        assert texts[0] == texts[1]


def test_every_operation_is_run_or_left_out_for_a_reason(capsys):
    there = set(_operations())
    used = {name for name in there if f"{name}(" in (HERE / "operations.py").read_text()}
    left_out = {name for name in there if name in LEFT_OUT or f"{name.rpartition('.')[0]}.*" in LEFT_OUT}
    with capsys.disabled():
        print(f"\n{len(there)} operations, {len(used)} of them run, {len(left_out)} left out")

    assert used | left_out == there
    assert not used & left_out


def _operations():
    """Yield the names of the operations that the installed pyinfra has."""
    for module in pkgutil.walk_packages(pyinfra.operations.__path__, "pyinfra.operations."):
        for name, found in vars(importlib.import_module(module.name)).items():
            if hasattr(found, "_inner") and found.__module__ == module.name and not name.startswith("_"):
                yield f"{module.name.removeprefix('pyinfra.operations.')}.{name}"
