"""An own agent with throw-away keys that admits one throw-away controller."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final

from lab import Lab, PeerUnavailableError, Place, free_port, server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

COMMAND: Final = (sys.executable, "-m", "pyinfra_agent")
COMMAND_TIMEOUT_S: Final = 20.0
KEY_PREFIX: Final = "pyinfra-agent-key "


@dataclass(frozen=True, slots=True)
class Agent:
    """A running agent and the controller's own directory."""

    pid: int
    address: str
    port: int
    controller_home: Path


@contextmanager
def running_agent(lab: Lab, place: Place) -> Iterator[Agent]:
    """Start an agent at *place*.

    Raises:
        PeerUnavailableError: not installed, or one of its commands failed.
    """
    for package in ("pyinfra_agent", "pyinfra_agent_connector"):
        if importlib.util.find_spec(package) is None:
            raise PeerUnavailableError(f"{package} cannot be imported (install the project: pip install -e '.[all]')")
    if not any(point.name == "agent" for point in entry_points(group="pyinfra.connectors")):
        raise PeerUnavailableError("pyinfra does not know a connector named agent (install the project)")

    state = lab.root / f"agent-{place.name}"
    state.mkdir(mode=0o700)
    controller_home = lab.root / f"controller-{place.name}"
    controller_home.mkdir(mode=0o700)
    environment = lab.environment() | {"PYINFRA_AGENT_HOME": str(controller_home)}
    printed = _command("identity", environment=environment)
    key = next((line for line in printed.splitlines() if line.startswith(KEY_PREFIX)), None)
    if key is None:
        raise PeerUnavailableError("`pyinfra-agent identity` printed no key")
    _command("authorize", "--state-dir", str(state), key, environment=environment)

    port = free_port()
    argv = [*COMMAND, "serve", "--listen", f"{place.address}:{port}", "--state-dir", str(state), "--no-announce"]
    log = lab.root / f"agent-{place.name}.log"
    with server(argv, port=port, place=place, log=log, environment=environment) as process:
        yield Agent(process.pid, place.address, port, controller_home)


def _command(*words: str, environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            [*COMMAND, *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise PeerUnavailableError(f"`pyinfra-agent {words[0]}` took over {COMMAND_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise PeerUnavailableError(f"`pyinfra-agent {words[0]}` failed with {done.returncode}: {said[-1][:200]}")
    return done.stdout
