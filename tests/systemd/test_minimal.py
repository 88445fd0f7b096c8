"""A clean, minimal Debian as a target: the agent from a directory of wheels, in that Debian's own Python."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.helpers import PYINFRA, clean_environment
from tests.matrix.run import build_wheel
from tests.systemd.helpers import CHECKOUT, Machine

RELEASE = "bookworm"
#: The essential packages, an init, and a Python without pip: what else a target needs is in the wheels.
PACKAGES = "systemd-sysv,python3-minimal,libpython3-stdlib"
PYTHON = "3.11"
PLATFORMS = tuple(f"{name}_{platform.machine()}" for name in ("manylinux2014", "manylinux_2_28", "manylinux_2_34"))
BOOTSTRAP_SECONDS = 600

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "/var/tmp", f"pyinfra-agent-test-debian-{os.getuid()}")

DIRECTORY = "/opt/pyinfra-agent"
AGENT = f"{DIRECTORY}/bin/pyinfra-agent"


class MinimalMachine(Machine):
    """A machine whose agent is its own, and not that of the tests."""

    def agent(self, *words, **options):
        return self.run(AGENT, *words, **options)

    def authorize(self):
        self.agent("authorize", self.identity(), check=True)


def remembered(name, make):
    """Return the directory *name* of the cache; *make* fills it, once per machine."""
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = CACHE / name
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            unfinished = CACHE / f".{name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(mode=0o755)
            make(unfinished)
            unfinished.rename(directory)
    return directory


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True, timeout=BOOTSTRAP_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def debian():
    """The tree of a Debian that nobody has touched."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed (package mmdebstrap)")
    bootstrap = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", "--dpkgopt=force-unsafe-io"]
    name = hashlib.sha256(f"{bootstrap}{RELEASE}".encode()).hexdigest()[:16]
    return remembered(f"{RELEASE}-{name}", lambda directory: run(*bootstrap, RELEASE, str(directory)))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """A directory as users make it for targets that reach no index."""
    directory = tmp_path_factory.mktemp("wheels")
    wheel = build_wheel(directory)
    tags = ["--only-binary=:all:", f"--python-version={PYTHON}", *(f"--platform={name}" for name in PLATFORMS)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *tags]

    def download(needed):
        run(*pip, f"--dest={needed}", f"{wheel}[agent]", "pip")
        (needed / wheel.name).unlink()  # it would not follow the sources

    name = hashlib.sha256(f"{tags}{(CHECKOUT / 'pyproject.toml').read_text()}".encode()).hexdigest()[:16]
    for needed in remembered(f"wheels-{name}", download).glob("*.whl"):
        shutil.copy(needed, directory)
    return directory


@pytest.fixture
def minimal(lab, home, debian, wheels):
    """The machine, with an agent in an environment of its own."""
    [container] = lab.boot("minimal", lower=debian)
    machine = MinimalMachine(lab, container, home)
    container.copy_in(wheels, "/root/wheels")
    machine.run("python3", "-m", "venv", "--without-pip", DIRECTORY, check=True)
    [pip] = wheels.glob("pip-*.whl")
    install = ["install", "--quiet", "--no-index", "--find-links=/root/wheels", "pyinfra-agentd[agent]"]
    machine.run(f"{DIRECTORY}/bin/python", f"/root/wheels/{pip.name}/pip", *install, check=True, seconds=120)
    yield machine
    machine.close()
    container.kill()


def test_minimal_debian_is_a_target(minimal, home, tmp_path):
    """The service runs, a deploy changes what it should and then nothing, a reboot brings it back, all can go."""
    minimal.install()
    assert f"path={DIRECTORY}/bin/python" in minimal.show("ExecStart")

    def deploy(*options):
        words = [PYINFRA, "-y", *options, f"@agent/{minimal.address}", CHECKOUT / "examples" / "site.py"]
        environment = clean_environment(PYINFRA_AGENT_HOME=str(home))
        return minimal.lab.run(*words, cwd=tmp_path, env=environment, seconds=60, check=True)

    deploy()
    assert minimal.container.path("/root/example-site/releases/1/robots.txt").is_file()
    minimal.container.reboot()
    minimal.serves()
    (tmp_path / "second.json").write_text(deploy("--json").stdout)
    run(sys.executable, str(CHECKOUT / "examples" / "no_changes.py"), str(tmp_path / "second.json"))
    assert minimal.agent("uninstall", "--purge").status == 0
    assert minimal.systemctl("list-units", "--all", "--plain", "--no-legend", "pyinfra*").stdout == ""
