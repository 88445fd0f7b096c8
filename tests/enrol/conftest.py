"""Machines that are reached by SSH alone, with a real systemd and sshd, and wheels for those without internet."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers import Lab, containers_or_skip
from tests.enrol.helpers import ROOT, Target, User, built_wheel

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "/var/tmp", f"pyinfra-agent-test-wheels-{os.getuid()}")


@pytest.fixture(scope="session")
def machines():
    containers_or_skip()
    for tool, package in (("sshd", "openssh-server"), ("ssh-keygen", "openssh-client")):
        if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            pytest.skip(f"{tool} is not installed (package {package})")
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """A host key and a user's key, made for this run."""
    directory = tmp_path_factory.mktemp("ssh")
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    return directory


@pytest.fixture(scope="session")
def dependencies(tmp_path_factory):
    """What the agent needs, and pip's own wheel, for this Python; fetched once per machine."""
    tag = hashlib.sha256(f"{sys.version}{(ROOT / 'pyproject.toml').read_text()}".encode()).hexdigest()[:16]
    directory = CACHE / tag
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            wheel = built_wheel(tmp_path_factory.mktemp("wheel"))
            unfinished = CACHE / f".{tag}"
            shutil.rmtree(unfinished, ignore_errors=True)
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            words = [*pip, "--only-binary", ":all:", "--dest", unfinished, f"{wheel}[agent]", "pip"]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            (unfinished / wheel.name).unlink()  # it would not follow the sources
            unfinished.rename(directory)
    return directory


@pytest.fixture(scope="session")
def wheels(dependencies, tmp_path_factory):
    """A directory as users make it for targets that reach no index: the agent of this checkout, and its needs."""
    directory = tmp_path_factory.mktemp("wheels")
    built_wheel(directory)
    for wheel in dependencies.glob("*.whl"):
        (directory / wheel.name).symlink_to(wheel)
    return directory


@pytest.fixture(scope="module")
def target(machines, keys):
    """A machine that nobody has enrolled yet; a module's own."""
    with contextlib.ExitStack() as stack:
        target = Target(machines, f"web{len(machines.containers)}", keys)
        stack.callback(target.container.kill)
        yield target


@pytest.fixture
def user(target, keys, wheels, tmp_path):
    """Somebody who runs pyinfra in the lab, and has never met an agent."""
    return User(target, keys, wheels, tmp_path)
