"""How each kind of peer connects, runs a command and copies a file: one small class a kind.

Imported in the worker only, after gevent has patched what it patches.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Protocol

Settings = Mapping[str, str | int]


class Driver(Protocol):
    """What the worker times."""

    def connect(self) -> None:
        """Open a new connection."""

    def close(self) -> None:
        """Close the connection."""

    def command(self, script: str) -> Iterable[str]:
        """Run a shell script that must succeed; the lines of its output, made only when asked for."""

    def put(self, local: str, remote: str) -> None:
        """Copy a file to the target."""

    def get(self, remote: str, local: str) -> None:
        """Copy a file from the target."""


class OperationFailedError(Exception):
    """The peer ran the operation and reported failure."""


class PyinfraDriver:
    """Any pyinfra connector, through pyinfra's own API: what is timed is what a user of pyinfra waits for."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._name = name
        self._settings = settings

    def connect(self) -> None:
        from pyinfra.api.config import Config
        from pyinfra.api.connect import connect_all
        from pyinfra.api.inventory import Inventory
        from pyinfra.api.state import State

        # A run makes one state and connects once: so does every connection here.
        inventory = Inventory(([self._name], {}), override_data=dict(self._settings))  # type: ignore[no-untyped-call]
        self._state = State(inventory, Config())  # type: ignore[no-untyped-call]
        connect_all(self._state)
        (self._host,) = self._state.activated_hosts

    def close(self) -> None:
        from pyinfra.api.connect import disconnect_all
        from pyinfra.connectors.ssh import SSHConnector

        disconnect_all(self._state)
        connector = self._host.connector
        # pyinfra 3.10 leaves the socket of @ssh open, and the next figures would share the machine with the sessions.
        if isinstance(connector, SSHConnector) and connector.client is not None:
            connector.client.close()

    def command(self, script: str) -> Iterable[str]:
        from pyinfra.api.command import StringCommand

        succeeded, output = self._host.run_shell_command(StringCommand(script))
        if not succeeded:
            raise OperationFailedError(f"`{script[:60]}` failed: {output.stderr[:200]}")
        return (entry.line for entry in output.combined_lines)

    def put(self, local: str, remote: str) -> None:
        if not self._host.put_file(local, remote):
            raise OperationFailedError("put_file() returned False")

    def get(self, remote: str, local: str) -> None:
        if not self._host.get_file(remote, local):
            raise OperationFailedError("get_file() returned False")


class ScpDriver:
    """OpenSSH's own client: one ssh or scp process an operation, over one ControlMaster connection."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._target = name
        self._options = [
            *("-F", "none", "-o", "BatchMode=yes", "-o", f"Port={settings['port']}"),
            *("-i", str(settings["key"]), "-o", f"UserKnownHostsFile={settings['known_hosts']}"),
        ]
        self._directory = settings["control_directory"]
        self._connections = 0

    def connect(self) -> None:
        self._connections += 1  # a new path each time: a master that is still leaving would be asked otherwise
        path = f"{self._directory}/control-{os.getpid()}-{self._connections}"
        self._shared = [*self._options, "-o", f"ControlPath={path}"]
        self._run("ssh", "-fNM", self._target)

    def close(self) -> None:
        self._run("ssh", "-O", "exit", self._target)

    def command(self, script: str) -> Iterable[str]:
        return self._run("ssh", self._target, script).splitlines()

    def put(self, local: str, remote: str) -> None:
        self._run("scp", "-q", local, f"{self._target}:{remote}")

    def get(self, remote: str, local: str) -> None:
        self._run("scp", "-q", f"{self._target}:{remote}", local)

    def _run(self, program: str, *words: str) -> str:
        # No pipe for stderr: the master that -f leaves behind would hold it open, and run() would wait for its end.
        done = subprocess.run(
            [program, *self._shared, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        if done.returncode != 0:
            raise OperationFailedError(f"`{program}` exited with {done.returncode}")
        return done.stdout


class MitogenDriver:
    """Mitogen as a library: calls a function in a Python that it keeps running on the target."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._address = name
        self._settings = settings

    def connect(self) -> None:
        master = import_module("mitogen.master")
        self._broker = master.Broker()
        self._router = master.Router(self._broker)
        self._context = self._router.ssh(
            hostname=self._address,
            port=self._settings["port"],
            username="root",
            identity_file=self._settings["key"],
            python_path=self._settings["python"],
            check_host_keys="ignore",
        )

    def close(self) -> None:
        self._context.shutdown(wait=True)
        self._broker.shutdown()
        self._broker.join()

    def command(self, script: str) -> Iterable[str]:
        # With its output, as with everybody else: `subprocess.call` would hand nothing back.
        status, output = self._context.call(subprocess.getstatusoutput, script)
        if status != 0:
            raise OperationFailedError(f"`{script[:60]}` exited with {status}")
        return output.splitlines()

    def put(self, local: str, remote: str) -> None:
        raise OperationFailedError("not measured with Mitogen")

    def get(self, remote: str, local: str) -> None:
        raise OperationFailedError("not measured with Mitogen")


DRIVERS: Mapping[str, type[PyinfraDriver] | type[ScpDriver] | type[MitogenDriver]] = {
    "pyinfra": PyinfraDriver,
    "scp": ScpDriver,
    "mitogen": MitogenDriver,
}
