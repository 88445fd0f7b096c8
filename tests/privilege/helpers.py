"""A machine with users, PAM, sudo, su, doas and sshd; agents on it; and a controller that asks them by pyinfra."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.helpers import AGENT, PYINFRA, clean_environment, eventually, run

DRIVER = Path(__file__).with_name("driver.py")
SSH_PORT = 22

CAROLS_PASSWORD = "carol-OPEN-sesame"
BOBS_PASSWORD = "bob's $ecret *word*"
"""With what shells and quoting care about."""

# Who has which rights is decided here, whatever this machine's own files say.
SETUP = r"""
useradd --create-home --shell /bin/bash carol
useradd --create-home --shell /bin/bash bob
useradd --create-home --shell /bin/false walled
printf '%s\n' "$ACCOUNTS" | chpasswd

# Two seconds after each wrong password are for attackers, not for tests.
sed -i '/pam_unix.so/ s/$/ nodelay/' /etc/pam.d/common-auth
# As where libpam-systemd is in use: su and `sudo -i` open a session, which is a cgroup of its own.
grep -q pam_systemd /etc/pam.d/common-session || echo 'session optional pam_systemd.so' >> /etc/pam.d/common-session

echo 'root ALL=(ALL:ALL) ALL
carol ALL=(ALL:ALL) ALL
Defaults env_reset, use_pty
Defaults:carol timestamp_timeout=0, passwd_tries=2
Defaults lecture=never' > /etc/sudoers
echo 'permit nopass root
permit nopass carol' > /etc/doas.conf
chmod 0440 /etc/sudoers /etc/doas.conf

echo 'echo NOISE of a profile >&2
PROFILE=read; export PROFILE' >> ~bob/.profile

for user in root carol; do
    home=$(getent passwd $user | cut -d: -f6)
    rm -f $home/.profile $home/.bash_profile $home/.bash_login
    echo 'export FROM_BASHRC=read' > $home/.bashrc
    mkdir -p $home/.ssh
    printf '%s\n' "$KEY" > $home/.ssh/authorized_keys
    chown -R $user: $home/.ssh
    chmod -R go= $home/.ssh
done
rm -rf /etc/ssh/sshd_config.d
echo 'UsePAM yes
PermitRootLogin yes
PasswordAuthentication no' > /etc/ssh/sshd_config
ssh-keygen -A
systemctl start ssh
"""


@dataclass(frozen=True)
class Answer:
    """What came of a request; `error` is the text of the exception, and "" where there was none."""

    succeeded: bool
    stdout: str = ""
    stderr: str = ""
    error: str = ""
    kind: list = field(default_factory=list)

    @property
    def text(self):
        return f"{self.stdout}\n{self.stderr}\n{self.error}"


class Driver:
    """`driver.py` in the controller's network; `log` is what it wrote to stderr."""

    def __init__(self, lab, environment, log, *hosts):
        self.log = log
        with log.open("wb") as stderr:
            self._process = lab.popen(
                *(sys.executable, DRIVER, *hosts),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
            )
        said = self._process.stdout.readline()
        assert said == "ready\n", log.read_text()

    def ask(self, host, do, *words, cancel_after=None, **arguments):
        request = {"host": host, "do": do, "words": words, "arguments": arguments, "cancel_after": cancel_after}
        self.start([request])
        return self.answers()[0]

    def start(self, requests):
        """Make several requests at once; `answers` waits for them."""
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()

    def answers(self):
        line = self._process.stdout.readline()
        assert line, self.log.read_text()
        return [Answer(**answer) for answer in json.loads(line)]

    def close(self):
        self._process.stdin.close()
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


@dataclass
class Agent:
    """An agent in the container, as the unit `name`, run by the user `user`; `driver` is there once it is asked."""

    machine: Machine
    user: str
    port: int
    driver: Driver | None = None

    @property
    def unit(self):
        return f"agent-of-{self.user}"

    @property
    def host(self):
        return f"@agent/{self.machine.container.address}:{self.port}"

    @property
    def log(self):
        return self.machine.container.run("journalctl", "--unit", self.unit, "--output=cat").stdout

    def run(self, text, **arguments):
        """Run a command by pyinfra's API."""
        return self.driver.ask(self.host, "command", text, **arguments)

    def start_at_once(self, *commands, cancel_after=None):
        """Start several commands, each a text and a dict of arguments; `driver.answers` waits for them."""
        same = {"host": self.host, "do": "command", "cancel_after": cancel_after}
        self.driver.start([same | {"words": [text], "arguments": more} for text, more in commands])

    def put(self, content, target, **arguments):
        return self.driver.ask(self.host, "put", content, target, **arguments)

    def fact(self, module, name, **arguments):
        answer = self.driver.ask(self.host, "fact", module, name, **arguments)
        assert answer.succeeded, answer
        return answer.stdout

    def get(self, source, **arguments):
        return self.driver.ask(self.host, "get", source, **arguments)


class Machine:
    """The container, its agents and the controller beside it."""

    def __init__(self, lab, container, directory):
        self.lab = lab
        self.container = container
        self.directory = directory
        self.environment = clean_environment(PYINFRA_AGENT_HOME=str(directory / "keys"))
        self._ssh_key = directory / "ssh-key"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._ssh_key)
        accounts = f"carol:{CAROLS_PASSWORD}\nbob:{BOBS_PASSWORD}"
        key = self._ssh_key.with_suffix(".pub").read_text().strip()
        setup = {"ACCOUNTS": accounts, "KEY": key, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        container.run("sh", "-ec", SETUP, env=setup, check=True)

    def start_agent(self, user, port):
        """Start an agent as a unit of systemd's, as `User=`, which lets this controller in."""
        agent = Agent(self, user, port)
        state = f"/var/lib/{agent.unit}"
        identity = run(AGENT, "identity", env=self.environment).stdout.strip()
        as_user = ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups")
        self.container.run("install", "-d", "-m700", "-o", user, state, check=True)
        self.container.run(*as_user, AGENT, "authorize", "--state-dir", state, identity, check=True)
        properties = {"User": user, "Delegate": "yes", "KillMode": "process", "TasksMax": "infinity"}
        self.container.run(
            *("systemd-run", "--quiet", f"--unit={agent.unit}"),
            *(f"--property={name}={value}" for name, value in properties.items() if (name, value) != ("User", "root")),
            *(AGENT, "serve", "--listen", f"0.0.0.0:{port}", "--state-dir", state, "--no-announce"),
            check=True,
        )
        eventually(lambda: "listening" in agent.log, 15, "listening")
        agent.driver = Driver(self.lab, self.environment, self.directory / f"{agent.unit}.log", agent.host)
        return agent

    def pyinfra_words(self, agent, *words):
        """Return the command that runs pyinfra's own command for an agent."""
        return self.lab.in_lab([PYINFRA, agent.host, *words])

    def ssh(self, user, *words):
        """Run a command by ssh; returns what `Lab.run` does."""
        options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        return self.lab.run(
            *("ssh", "-F", "none", "-i", self._ssh_key, *(f"-o{option}" for option in options)),
            *(f"{user}@{self.container.address}", *words),
            env=clean_environment(),
        )

    def living(self, token):
        """Return the words of each live process of the container that has *token* among them."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if token in (words := (process / "cmdline").read_bytes().decode(errors="replace").split("\0")):
                    found.append(words[:-1])
        return found


class Watcher:
    """Looks at what every user of the machine can see of its processes, again and again, until it is left."""

    def __init__(self):
        self.seen = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *failure):
        self._over.set()
        self._thread.join()

    def _watch(self):
        while not self._over.wait(0.005):
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    self.seen.add((process / "cmdline").read_bytes())
