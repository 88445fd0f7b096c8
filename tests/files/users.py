"""An agent of an ordinary user, on what looks like a machine of its own: other accounts, passwords, sudo, su and doas.

It lives in a mount namespace in which /etc, /tmp and /var/tmp are covered: nothing of this machine changes, and what
appears in the temporary directories can be watched from here.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyinfra.api import Config, Inventory, State

from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_protocol.keys import format_public

SOMEBODY, OTHER, GUEST, LOCKED = 61001, 61002, 61003, 61004
"""The agent's user, who may do all with a password; one who owns files; one who may do nothing; one without a shell."""

GROUP = 61000
PASSWORD = 'it\'s a \\ "pass" word$'
OTHERS_PASSWORD = "an other's"

_ACCOUNTS = f"""\
somebody:x:{SOMEBODY}:{GROUP}::/home:/bin/sh
other:x:{OTHER}:{GROUP}::/home:/bin/sh
guest:x:{GUEST}:{GROUP}::/home:/bin/sh
locked:x:{LOCKED}:{GROUP}::/home:/usr/sbin/nologin
"""
_SUDOERS = """\
Defaults env_reset, use_pty, passwd_tries=1
root ALL=(ALL:ALL) ALL
somebody ALL=(other) NOPASSWD: ALL
somebody ALL=(root) ALL
"""
_DOAS = """\
permit nopass somebody as other
permit nopass root
"""
# A profile that prints, for every kind of shell that reads one.
_PROFILE = "echo Welcome to this machine; echo Have a nice day >&2\n"

# dzdo is not free software: this is what it does with the options that pyinfra gives it.
_DZDO = '#!/bin/sh\nexec sudo "$@"\n'

# In front of these: as they are outside. {closed} are directories on the way to this Python that only root may enter.
_SETUP = """
set -e
directory=$1
shift
cd "$directory"
mkdir all cover
mount --rbind / all
mount -t tmpfs none cover
layered() {{
    number=$(($number + 1))
    mkdir "cover/$number" "cover/$number/upper" "cover/$number/work"
    mount -t overlay -o "lowerdir=$1,upperdir=cover/$number/upper,workdir=cover/$number/work" none "$1"
}}
number=0
for closed in {closed}; do layered "$closed"; chmod a+rx "$closed"; done
layered /etc
cat accounts >> /etc/passwd
echo "people:x:{group}:" >> /etc/group
for name in somebody other guest locked; do echo "$name:*:19000:0:99999:7:::" >> /etc/shadow; done
chpasswd < passwords
rm -rf /etc/sudoers.d && mkdir /etc/sudoers.d
install -o 0 -g 0 -m 440 sudoers /etc/sudoers
install -m 400 doas /etc/doas.conf
cp profile /etc/profile
mkdir /etc/programs && install -m 755 dzdo /etc/programs/dzdo
sed -i 's/pam_unix.so/& nodelay/' /etc/pam.d/common-auth  # a wrong password costs two seconds otherwise
mount --bind var /var/tmp
mount --bind tmp /tmp
for hidden in {hidden}; do mkdir -p "$hidden"; mount --bind "all$hidden" "$hidden"; done
cd /tmp
exec "$@"
"""

_AGENT = """
import os, sys
user, umask = int(sys.argv[1]), int(sys.argv[2], 8)
if user:
    os.setgroups([])
    os.setresgid({group}, {group}, {group})
    os.setresuid(user, user, user)
    os.environ.update(USER="somebody", LOGNAME="somebody", HOME="/tmp")
os.umask(umask)
from pyinfra_agent._loopback import main
sys.exit(main())
"""


def _setup():
    python = {Path(sys.base_prefix), Path(sys.prefix), Path(__file__).parents[2]}
    hidden = {path for path in python if Path("/tmp") in path.parents}
    closed = {above for path in python - hidden for above in (*path.parents, path) if not above.stat().st_mode & 0o001}
    words = {name: shlex.join(map(str, sorted(paths))) for name, paths in (("hidden", hidden), ("closed", closed))}
    return _SETUP.format(group=GROUP, **words)


@dataclass
class Machine:
    """The agent, and the pyinfra host by which it is reached.

    Attributes:
        temporary: the directories that the agent sees as /tmp and /var/tmp.
        pid: the agent's.
    """

    host: object
    temporary: tuple[Path, Path]
    pid: int

    def outside(self, path):
        """Return where *path*, in the agent's /tmp, is for us."""
        return f"{self.temporary[0]}{path.removeprefix('/tmp')}"

    def directory(self, name, user):
        """Make a directory of *user* in the agent's /tmp; return its path there."""
        path = self.temporary[0] / name
        path.mkdir()
        os.chown(path, user, GROUP)
        return f"/tmp/{name}"

    def run(self, *command, **options):
        """Run *command* in the agent's namespace as root; return what it printed."""
        words = ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", *map(str, command)]
        return subprocess.run(words, check=True, capture_output=True, text=True, **options).stdout


@contextmanager
def machine(directory, *, user=SOMEBODY, umask=0o022):
    """Start the agent as *user*, or as root (0); yield the `Machine`. *directory* must be reachable by everybody."""
    temporary = (directory / "tmp", directory / "var")
    for path in temporary:
        path.mkdir()
        path.chmod(0o1777)
    files = {
        "accounts": _ACCOUNTS,
        "passwords": f"somebody:{PASSWORD}\nother:{OTHERS_PASSWORD}\n",
        "sudoers": _SUDOERS,
        "doas": _DOAS,
        "profile": _PROFILE,
        "dzdo": _DZDO,
    }
    for name, text in files.items():
        (directory / name).write_text(text)
    home = directory / "home"
    identity = load_or_create(home)
    process = subprocess.Popen(
        [
            "unshare", "--mount", "--propagation", "private",
            "sh", "-c", _setup(), "sh", directory,
            sys.executable, "-c", _AGENT.format(group=GROUP), str(user), f"{umask:o}",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ) | {"PATH": "/etc/programs:/usr/sbin:/usr/bin:/sbin:/bin", "SHELL": "/bin/sh"},
    )  # fmt: skip
    try:
        process.stdin.write(f"{format_public(identity.keypair.public)}\n".encode())
        process.stdin.flush()
        port, _, line = process.stdout.readline().decode().strip().partition(" ")
        if not port:
            pytest.skip(f"such a machine cannot be made here: {process.stderr.read().decode().strip()}")
        data = {"agent_home": str(home), "agent_public_key": line}
        state = State(Inventory(([(f"@agent/127.0.0.1:{port}", data)], {})), Config())
        (host,) = state.inventory
        host.connect(raise_exceptions=True)
        try:
            yield Machine(host, temporary, process.pid)
        finally:
            host.disconnect()
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()
        process.stderr.close()
