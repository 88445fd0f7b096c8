"""A target with sshd, and a user who reaches it by that."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.e2e.helpers import PYINFRA, clean_environment

ROOT = Path(__file__).resolve().parents[2]
#: The Python that a container has for certain, and for which the wheels are.
TARGET_PYTHON = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
RUN_SECONDS = 90

SSHD = """\
HostKey /etc/ssh/test/host_key
AuthorizedKeysFile /etc/ssh/test/user_key.pub
UsePAM no
UseDNS no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
Subsystem sftp internal-sftp
"""


def built_wheel(directory, root=ROOT):
    """Build the wheel of a checkout into `directory`, and return it."""
    words = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", directory, root]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = directory.glob("pyinfra_agentd-*.whl")
    return wheel


class Target:
    """A running container; its sshd lets in one key, as root and as the user nobody-special."""

    def __init__(self, lab, name, keys):
        self.lab = lab
        self.container = lab.add(name)
        self.address = self.container.address
        directory = self.container.root / "etc/ssh/test"
        directory.mkdir(parents=True)
        for file in keys.iterdir():
            shutil.copy2(file, directory)
        (directory / "sshd_config").write_text(SSHD)
        self.container.start()
        self.container.wait_running()
        unit = ("systemd-run", "--quiet", "--unit=test-sshd", "--property=RuntimeDirectory=sshd")
        self.run(*unit, "/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/test/sshd_config", check=True)

    def run(self, *command, **options):
        return self.container.run(*command, **options)

    def exists(self, path):
        return self.run("test", "-e", path).status == 0

    def left_overs(self):
        """Everything on the machine that is called like the agent."""
        places = ("/opt", "/etc", "/var/lib", "/run", "/tmp", "/root", "/usr/local")
        skip = ("-path", "/var/lib/dpkg", "-prune", "-o")
        return self.run("find", *places, *skip, "-name", "*pyinfra*", "-print").stdout.split()


class User:
    """A person with a home of their own for keys and pins."""

    def __init__(self, target, keys, wheels, directory):
        self.target = target
        self.wheels = wheels
        self.directory = directory
        self.home = directory / "home"
        self.name = f"{target.address}:7963"
        known_hosts = directory / "known_hosts"
        kind, key, *_ = (keys / "host_key.pub").read_text().split()
        known_hosts.write_text(f"{target.address} {kind} {key}\n")
        data = {"ssh_key": keys / "user_key", "ssh_known_hosts_file": known_hosts, "ssh_user": "root"}
        self._data = [word for name, value in data.items() for word in ("--data", f"{name}={value}")]

    @property
    def environment(self):
        return clean_environment(PYINFRA_AGENT_HOME=str(self.home), COLUMNS="300")

    def run(self, *command, seconds=RUN_SECONDS, **environment):
        return self.target.lab.run(
            *command,
            seconds=seconds,
            cwd=self.directory,
            env=self.environment | {k: str(v) for k, v in environment.items()},
        )

    def ssh(self, *words, data=(), **options):
        """Run pyinfra for the target by SSH."""
        more = [word for one in data for word in ("--data", one)]
        return self.run(PYINFRA, "-y", f"@ssh/{self.target.address}", *self._data, *more, *words, **options)

    def agent(self, *words, **options):
        """Run pyinfra for the target by its agent."""
        return self.run(PYINFRA, "-y", f"@agent/{self.target.address}", *words, **options)

    def enrol(self, *words, wheel_dir=None, python=TARGET_PYTHON, **options):
        words = (f"wheel_dir={wheel_dir or self.wheels}", f"python={python}", *words)
        return self.ssh("pyinfra_agent_connector.enrol", *words, **options)

    def unenrol(self, *words, **options):
        return self.ssh("pyinfra_agent_connector.unenrol", *words, **options)

    def pins(self):
        """The lines of known_agents."""
        path = self.home / "known_agents"
        return path.read_text().splitlines() if path.exists() else []


def said(outcome):
    """Everything that a run printed."""
    return outcome.stdout + outcome.stderr


def succeeded(outcome):
    assert outcome.status == 0, said(outcome)
    assert "Traceback" not in said(outcome), said(outcome)
    return said(outcome)


def changed(outcome):
    text = succeeded(outcome)
    assert "Success" in text, text
    return text


def unchanged(outcome):
    text = succeeded(outcome)
    assert "No changes" in text, text
    return text


def failed(outcome, *fragments):
    """Assert that a run failed, said one line with all of `fragments`, and showed no traceback."""
    text = said(outcome)
    assert outcome.status != 0, text
    assert "Traceback" not in text, text
    assert any(all(fragment in line for fragment in fragments) for line in text.splitlines()), text
    return text
