"""A deploy with every operation that a container allows leaves through @agent what it leaves through @local."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyinfra.operations
import pytest

from tests.e2e.helpers import AGENT, PYINFRA, clean_environment, eventually, run
from tests.equality.left_out import LEFT_OUT
from tests.equality.trees import differences, written

HERE = Path(__file__).parent
DEPLOYS = HERE / "operations.py", HERE / "operations_stubbed.py"
TOOLS = HERE / "tools"
CALLS = "srv/state/calls"
RUN_SECONDS = 240
AGENT_PORT = 7963
WAITED_PORT = 7100

NEEDED = {
    "curl": "curl",
    "git": "git",
    "gpg": "gnupg",
    "locale-gen": "locales",
    "rsync": "rsync",
    "ssh-keyscan": "openssh-client",
    "sshd": "openssh-server",
    "sysctl": "procps",
    "unzip": "unzip",
}
"""Programs that the operations call and the container has from this machine, and the packages that they are in."""

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
    r"srv/place/text|etc/init/toy-upstart\.override": "@local copies its own temporary file, and its mode; see below",
}
"""Where the trees of two containers differ by themselves, and why."""


FAILS = {"ignored python.raise_exception": "to fail is what it does"}
"""Operations that fail, and why."""

UPLOADED_WITHOUT_MODE = {
    "srv/place/text": 'é "$HOME" `id`\nno newline at end',
    "etc/init/toy-upstart.override": "manual\n",
}
"""New files that the deploy gives no mode: the umask decides through @agent, as it does through @ssh."""


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
            *(PYINFRA, "-y", "--json", self.host, *DEPLOYS, *words),
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
    assert all(len({operation["name"] for operation in operations}) == len(operations) for operations in results)
    return [{operation["name"]: _outcome(operation) for operation in operations} for operations in results]


def _outcome(operation):
    [outcome] = [kind for kind in ("success", "error", "no_change") if operation.get(kind)] or ["none"]
    return outcome


def _answers_by_ssh(container):
    return container.run("ssh-keyscan", "-t", "ed25519", "127.0.0.1").stdout


@pytest.fixture(scope="module")
def sides(lab, tmp_path_factory):
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (package {package})")
    directory = tmp_path_factory.mktemp("operations")
    local, remote = lab.boot("by-local", "by-agent")
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "equality", "-f", directory / "ssh_key")
    for container in (local, remote):
        material = container.path("/srv/material")
        material.mkdir(parents=True)
        for name in ("ssh_key", "ssh_key.pub"):
            shutil.copy(directory / name, material)
        container.run("sh", HERE / "operations_setup.sh", sys.executable, check=True)
        container.run("hostname", "original", check=True)
        listener = (sys.executable, "-m", "http.server", str(WAITED_PORT))
        container.run("systemd-run", "--quiet", *listener, check=True)
        eventually(partial(_answers_by_ssh, container), 15, "an answer by SSH")
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


def test_deploy_leaves_the_same_tree_and_finds_nothing_to_do_when_it_runs_again(sides, capsys):
    local, _ = sides

    first = both(sides)
    again = both(sides)

    assert first[1] == first[0]
    assert {operation_of(name) for name in first[1]} == set(used())
    assert {name for name, outcome in first[1].items() if outcome != "success"} == set(FAILS)
    assert again[1] == again[0]
    changed = {name for name, outcome in again[1].items() if outcome != "no_change"}
    assert {name for name in changed if not name.startswith("always ")} == set(FAILS)
    fetched = [side.container.path(side.fetched) if side is local else side.fetched for side in sides]
    assert [(place / "fetched.txt").read_text() for place in fetched] == ["fetched from the machine\n"] * 2
    roots = [side.container.root for side in sides]
    calls = [line.split()[0] for line in (roots[0] / CALLS).read_text().splitlines()]
    assert {tool.name for tool in TOOLS.iterdir()} <= set(calls)
    paths = {path for root in roots for path in written(root.with_name("upper"))}
    with capsys.disabled():
        print(f"\n{len(first[1])} operations twice, {len(calls)} calls of stubs, {len(paths)} paths compared")
    assert len(paths) > 300
    found = differences(*roots, paths, DIFFERENT)
    assert not found, "\n".join(f"{path}: {left} {right}"[:500] for path, (left, right) in found.items())
    for path, text in UPLOADED_WITHOUT_MODE.items():
        assert [(root / path).stat().st_mode & 0o777 for root in roots] == [0o600, 0o644]
        assert [(root / path).read_text() for root in roots] == [text] * 2
    for name in ("hosts", "hostname"):
        texts = [
            (root / "etc" / name).read_text().replace(side.container.name, "NAME")
            for root, side in zip(roots, sides, strict=True)
        ]
        assert texts[0] == texts[1]


def test_every_operation_is_run_or_left_out_for_a_reason(capsys):
    there = set(_operations())
    run = set(used())
    with capsys.disabled():
        print(f"\n{len(there)} operations, {len(run)} of them run, {len(LEFT_OUT)} left out")

    assert run | set(LEFT_OUT) == there
    assert not run & set(LEFT_OUT)


def operation_of(name):
    """Return the operation that one with this name is: all are named after what they are."""
    return re.sub(r"^((always|nested|ignored) )*", "", name).split()[0]


def used():
    """Yield the operations that the deploys call, with a name that says so."""
    for deploy in DEPLOYS:
        for call in ast.walk(ast.parse(deploy.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                for name in (keyword.value.value for keyword in call.keywords if keyword.arg == "name"):
                    assert operation_of(name) == ast.unparse(call.func)
                    yield operation_of(name)


def _operations():
    """Yield the names of the operations that the installed pyinfra has."""
    for module in pkgutil.walk_packages(pyinfra.operations.__path__, "pyinfra.operations."):
        for name, found in vars(importlib.import_module(module.name)).items():
            if hasattr(found, "_inner") and found.__module__ == module.name and not name.startswith("_"):
                yield f"{module.name.removeprefix('pyinfra.operations.')}.{name}"
