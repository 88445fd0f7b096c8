"""Links for discovery: network namespaces joined by virtual cables, and programs that announce and look inside them.

The namespaces have no names: open descriptors hold them, so they go with this process however it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from pyinfra_agent_protocol.advert import Advert
from pyinfra_agent_protocol.keys import KeyPair, fingerprint

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
SECONDS: Final = 120.0
AGENT_PORT: Final = 7963

_CLONE_NEWNET: Final = 0x40000000  # include/uapi/linux/sched.h; os.unshare arrives in Python 3.12 only


class Namespace:
    """A network namespace; `run` and `start` are for programs inside it."""

    def __init__(self, stack):
        self.descriptor = _in_new_thread(_unshared)
        stack.callback(os.close, self.descriptor)
        self.path = f"/proc/{os.getpid()}/fd/{self.descriptor}"
        self.prefix = ["nsenter", f"--net={self.path}"]
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *command, status=0, **options):
        options = {"capture_output": True, "text": True, "timeout": SECONDS, **options}
        done = subprocess.run([*self.prefix, *command], check=False, **options)
        assert status is None or done.returncode == status, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done

    def start(self, *command, **options):
        return subprocess.Popen([*self.prefix, *command], **options)

    @contextmanager
    def attacked(self, attack, *source):
        """Let hostile.py do that from its *source*, an address and perhaps a port, as long as it lasts."""
        words = (sys.executable, str(HERE / "hostile.py"), attack, *source)
        process = self.start(*words, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def firewall(self, *rules):
        """Filter what comes in by nftables *rules*."""
        lines = ["flush ruleset", "table inet filter {", "chain input {", "type filter hook input priority 0", *rules]
        self.run("nft", "-f", "-", input="\n".join([*lines, "}", "}", ""]))


class Lab:
    """A controller's namespace and others, joined as a test wants."""

    def __init__(self):
        self._stack = ExitStack()
        self._cables = 0
        self.controller = self.namespace()

    def namespace(self):
        return Namespace(self._stack)

    def join(self, left, left_addresses, right, right_addresses, *, name="eth0", mtu=1500):
        """Lay a cable between two namespaces; both ends are called *name*."""
        self._cables += 1
        left.run(
            *("ip", "link", "add", name, "mtu", str(mtu), "type", "veth"),
            *("peer", "name", name, "mtu", str(mtu), "netns", right.path),
        )
        for side, addresses in ((left, left_addresses), (right, right_addresses)):
            # No waiting for duplicate address detection: IPv6 addresses are usable at once.
            side.run("sysctl", "-qw", f"net.ipv6.conf.{name}.accept_dad=0")
            for address in addresses:
                side.run("ip", "address", "add", address, "dev", name)
            side.run("ip", "link", "set", name, "up")

    def announce(self, namespace, *specs):
        """Announce agents by python-zeroconf, one responder for each of *specs*; return when it is done."""
        process = namespace.start(
            *(sys.executable, str(HERE / "announcer.py"), json.dumps(specs)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(_finish, process)
        assert process.stdout.readline() == "ready\n"
        return process

    def looked(self, program, *arguments, namespace=None, environment=None):
        """Run one of the functions of looker.py as the controller; return what it found."""
        done = (namespace or self.controller).run(
            *(sys.executable, "-W", "error", str(HERE / "looker.py"), program, *arguments),
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        )
        return json.loads(done.stdout)

    def close(self):
        self._stack.close()


def spec(interface_address, *names, groups=("web",), port=AGENT_PORT, **more):
    """Return what one responder announces at *interface_address*: agents of these *names*."""
    return {
        "interfaces": [interface_address],
        "agents": [agent(name, [interface_address], groups=groups, port=port, **more) for name in names],
    }


def agent(name, addresses, *, groups=("web",), port=AGENT_PORT, key=None, server=None):
    key = key or KeyPair.generate().public
    advert = Advert(fingerprint(key), tuple(groups), "Debian GNU/Linux 12", "x86_64", "0.1.0")
    return {
        "name": name,
        "server": server or name,
        "port": port,
        "addresses": list(addresses),
        "strings": [string.decode() for string in advert.strings()],
    }


def _finish(process):
    process.stdin.close()
    process.wait(SECONDS)
    process.stdout.close()


def _unshared():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _in_new_thread(function):
    """Run *function* in a thread of its own: a changed namespace belongs to the thread and goes with it."""
    outcome = []

    def run():
        try:
            outcome.append(function())
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(outcome[0], OSError):
        raise outcome[0]
    return outcome[0]
