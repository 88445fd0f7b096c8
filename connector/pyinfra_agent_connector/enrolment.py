"""Operations that let a machine in: the agent goes there by the way that is open today, and is then reached by its own.

    pyinfra @ssh/web1 pyinfra_agent_connector.enrol
    pyinfra @ssh/web1 pyinfra_agent_connector.enrol wheel_dir=wheels --sudo
    pyinfra @ssh/web1 pyinfra_agent_connector.unenrol

In a deploy: `from pyinfra_agent_connector import enrol`. Both need pyinfra 3.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pyinfra import host, logger
from pyinfra.api import FileUploadCommand, FunctionCommand, operation

from pyinfra_agent_protocol import DEFAULT_PORT, KeyFormatError
from pyinfra_agent_protocol.certificates import (
    CertificateRefused,
    check_certificate,
    format_authority,
    format_certificate,
    open_certificate,
    parse_certificate,
)
from pyinfra_agent_protocol.keys import fingerprint, format_public, parse_public
from pyinfra_agent_protocol.trust_lines import split_options

from ._errors import AgentError
from ._fleet import Fleet, FleetError
from ._identity import Identity, IdentityError, agent_home, load_or_create
from ._installation import (
    DISTRIBUTION,
    MIN_PYTHON,
    AgentInstallation,
    Installation,
    certificate_script,
    command_line,
    install_script,
    note_script,
    remove_script,
    upload_path,
)
from ._known import KnownAgents, UntrustedAgent
from ._names import BadAgentName, NameKind, parse_agent_name, pin_name
from ._passphrase import PassphraseError
from ._private_file import PrivateFileError
from ._settings import Settings
from ._trust import KNOWN_AGENTS_FILE, AgentTrust
from ._wheels import PackedWheels, WheelError, packed_wheels
from .client import AgentClient

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from pyinfra.api import Host, State

__all__ = ["enrol", "unenrol"]

_CERTIFICATE_SECONDS: Final = 365 * 24 * 3600
#: A certificate that ends sooner than this is signed anew.
_RENEWAL_SECONDS: Final = 30 * 24 * 3600
#: For an agent that has just been started, or for a network that does not answer.
_CONNECT_SECONDS: Final = 10.0

_EXPECTED: Final = (
    AgentError,
    BadAgentName,
    FleetError,
    IdentityError,
    KeyFormatError,
    PassphraseError,
    PrivateFileError,
    UntrustedAgent,
    WheelError,
)


@operation()
def enrol(
    wheel_dir: str | None = None,
    python: str = "python3",
    listen: str | Sequence[str] = (),
    authorized: str | Sequence[str] = (),
    address: str | None = None,
    certify: bool = False,
    groups: str | Sequence[str] = (),
) -> Generator[Any, None, None]:
    """Install the agent, let this controller in, pin its key, and check that it is reached as `@agent/HOST`.

    The agent gets a virtual environment of its own, /opt/pyinfra-agent, with the version that this controller runs, and
    a systemd unit. Its key is learnt over the connection that this operation runs by, and pinned in known_agents. Where
    all of that is so already, nothing changes; where only the version differs, it is upgraded and restarted.

    The target needs systemd and Python 3.10 or later. Which package index its pip asks is its own configuration, or
    `_env={"PIP_INDEX_URL": ...}`.

    Args:
        wheel_dir: a directory of this machine with wheels of the agent and all that it needs, for targets that reach
            no index: `pip wheel --wheel-dir DIR 'pyinfra-agentd[agent]'`. If pip's own wheel is among them
            (`pip download --dest DIR pip`), the target need not have ensurepip (Debian's python3-venv).
        python: the Python on the target that the virtual environment is made of.
        listen: where the agent listens, HOST:PORT; every address at the port of host data agent_port by default.
        authorized: lines for authorized_controllers, with options as there; by default this controller's own key.
        address: what stands after `@agent/`; by default host data agent_host, else the host's name as SSH knows it.
        certify: have the agent's key signed by the fleet key of this controller (`pyinfra-agent ca init`), and let in
            controllers that this fleet key certifies.
        groups: pyinfra groups for the agent's certificate.
    """
    try:
        plan = _Plan.make(host.data.get, host.name, wheel_dir, listen, authorized, address, certify, groups)
        found = host.get_fact(AgentInstallation, python=python)
        problem = plan.problem(found, python)
        is_up = plan.is_up(found)
        if problem is None and is_up and plan.is_let_in(found) and plan.failure() is None:
            host.noop(f"the agent {plan.name} is enrolled and answers")
            return
        # What should answer and does not is started anew.
        is_up = is_up and not plan.is_let_in(found)
        packed = plan.packed_wheels() if found.version != plan.version else None
    except _EXPECTED as error:
        problem = str(error)
    if problem is not None:
        # At execution, and for this host only: an exception here would stop the run for every other one.
        yield FunctionCommand(_refuse, (problem,), {})
        return

    if found.version != plan.version:
        if packed is not None:
            yield FileUploadCommand(
                packed.path, upload_path(), remote_temp_filename=host.get_temp_filename(upload_path())
            )
        yield install_script(python, plan.version, wheels_sha256=packed.sha256 if packed is not None else None)
    for line in plan.missing_lines(found):
        yield command_line(["authorize", line])
    if not is_up:
        yield command_line(["install", *(word for one in plan.listen for word in ("--listen", one))])

    found = host.get_fact(AgentInstallation, python=python)
    if certify and found.key_line is not None and not plan.is_certified(found):
        try:
            certificate = plan.sign(found.key_line)
        except _EXPECTED as error:
            yield FunctionCommand(_refuse, (str(error),), {})
            return
        yield certificate_script(found.state_dir, certificate)
    yield FunctionCommand(_confirm, (plan, found.key_line), {})
    yield note_script(plan.note)


@operation()
def unenrol(address: str | None = None) -> Generator[Any, None, None]:
    """Remove the agent with its keys, its settings and its virtual environment, and its pin on this controller.

    Commands that run through the agent at that moment are left alone.

    Args:
        address: what stands after `@agent/`; by default as for `enrol`.
    """
    problem = None
    try:
        settings = Settings.read(host.data.get)
        name = pin_name(*_endpoint(host.data.get, host.name, settings, address))
        known = _known_agents(settings)
        found = host.get_fact(AgentInstallation)
        if found.uid != 0:
            problem = _not_root(found)
        elif host.name.startswith("@agent/"):
            problem = f"the agent cannot remove itself: run this by another way, such as @ssh/{name.rpartition(':')[0]}"
        is_pinned = name in known.pins()
    except _EXPECTED as error:
        problem = str(error)
    if problem is not None:
        yield FunctionCommand(_refuse, (problem,), {})
        return
    if not found.is_absent:
        yield remove_script()
    if is_pinned:
        yield FunctionCommand(_forget, (known, name), {})
    if found.is_absent and not is_pinned:
        host.noop(f"there is no agent on {host.name}, and no pin of {name}")


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one host is to become.

    Attributes:
        version: of the agent.
        endpoint: host and port after `@agent/`.
        settings: the host's data.
        identity: this controller's.
        known: its known_agents.
        lines: what authorized_controllers has to hold.
        listen: for `pyinfra-agent install`.
        wheel_dir: a local directory, or None for an index.
        fleet: what signs the agent's key, or None.
        groups: for its certificate.
    """

    version: str
    endpoint: tuple[str, int]
    settings: Settings
    identity: Identity
    known: KnownAgents
    lines: tuple[str, ...]
    listen: tuple[str, ...]
    wheel_dir: Path | None
    fleet: Fleet | None
    groups: tuple[str, ...]

    @classmethod
    def make(
        cls,
        get: Any,  # noqa: ANN401 - pyinfra's host data
        host_name: str,
        wheel_dir: str | None,
        listen: str | Sequence[str],
        authorized: str | Sequence[str],
        address: str | None,
        certify: bool,
        groups: str | Sequence[str],
    ) -> _Plan:
        try:
            version = metadata.version(DISTRIBUTION)
        except metadata.PackageNotFoundError:
            raise AgentError(
                f"{DISTRIBUTION} runs from a source tree here, and has no version to install: pip install it"
            ) from None
        settings = Settings.read(get)
        endpoint = _endpoint(get, host_name, settings, address)
        home = agent_home(settings.home)
        identity = load_or_create(home)
        fleet = Fleet(home / "ca") if certify else None
        lines = _texts(authorized)
        if not lines and not (fleet is not None and identity.certificate):
            lines = (format_public(identity.keypair.public, identity.comment),)
        if fleet is not None:
            authority = fleet.authority()
            lines = (*lines, f"cert-authority {format_authority(authority.public, authority.comment)}")
        for line in lines:
            _check_line(line)
        return cls(
            version=version,
            endpoint=endpoint,
            settings=settings,
            identity=identity,
            known=_known_agents(settings),
            lines=lines,
            listen=_texts(listen) or ((f":{endpoint[1]}",) if endpoint[1] != DEFAULT_PORT else ()),
            wheel_dir=Path(wheel_dir).expanduser().absolute() if wheel_dir is not None else None,
            fleet=fleet,
            groups=_texts(groups),
        )

    @property
    def name(self) -> str:
        """The agent's name in known_agents."""
        return pin_name(*self.endpoint)

    @property
    def note(self) -> str:
        """What is written down on the target when all is done."""
        return " ".join((self.version, *(f"--listen {address}" for address in self.listen)))

    # --- what there is ---

    def problem(self, found: Installation, python: str) -> str | None:
        """Return why nothing can be done, or None."""
        if found.uid != 0:
            return _not_root(found)
        wanted = ".".join(map(str, MIN_PYTHON))
        if found.python is None:
            return f"there is no {python} on this host: install Python {wanted} or later, or name another by python="
        if found.python < MIN_PYTHON:
            is_ = ".".join(map(str, found.python))
            return f"{python} on this host is Python {is_}, and the agent needs {wanted}: name a later one by python="
        if "venv" not in found.has:
            return f"{python} on this host has no module venv: install it (on Debian: apt-get install python3-venv)"
        if "ensurepip" not in found.has and found.version is None and not self._has_pip_wheel():
            return (
                f"{python} on this host has no ensurepip: install it (on Debian: apt-get install python3-venv), or put"
                " pip's own wheel into wheel_dir"
            )
        if "systemd" not in found.has:
            return "no systemd runs on this host: install the agent there by hand, with its service manager"
        if "stranger" in found.has:
            return "/opt/pyinfra-agent on this host is no virtual environment: move it away"
        return self._pin_problem(found)

    def _has_pip_wheel(self) -> bool:
        return self.wheel_dir is not None and any(self.wheel_dir.glob("pip-*.whl"))

    def _pin_problem(self, found: Installation) -> str | None:
        pin = self.known.lookup(self.name)
        if pin is None:
            return None
        if found.key_line is None:
            if "key" in found.has:
                return None  # what is installed is broken: the key is compared once it has been read
            has = "no key yet"
        else:
            key = parse_public(found.key_line).key
            if key == pin.key:
                return None
            has = fingerprint(key)
        return (
            f"{self.name} is pinned with the key {fingerprint(pin.key)}, but the agent on this host has {has}; if this"
            f" is the right machine, type: pyinfra-agent trust remove {self.name}"
        )

    def is_up(self, found: Installation) -> bool:
        """Tell whether the service runs as it should, as far as can be seen on the target."""
        return found.note == self.note and found.version == self.version and "service" in found.has

    def is_let_in(self, found: Installation) -> bool:
        """Tell whether agent and controllers are to know each other."""
        return (
            found.key_line is not None
            and not self.missing_lines(found)
            and (self.settings.public_key is not None or self.known.lookup(self.name) is not None)
            and (self.fleet is None or self.is_certified(found))
        )

    def missing_lines(self, found: Installation) -> tuple[str, ...]:
        """Return the lines that authorized_controllers lacks; comments do not count."""
        present = [_meaning(line) for line in found.authorized]

        def is_present(line: str) -> bool:
            options, key = _meaning(line)
            # Somebody may have restricted a key there, which enrolling it again must not undo.
            return any(key == there and (not options or options == others) for others, there in present)

        return tuple(line for line in self.lines if not is_present(line))

    def is_certified(self, found: Installation) -> bool:
        """Tell whether the agent's certificate is the right one, and not about to end."""
        if self.fleet is None or found.key_line is None:
            return False
        authority = self.fleet.authority()
        try:
            certificate, by = open_certificate(parse_certificate(found.certificate), {authority.id: authority})
            check_certificate(
                certificate,
                by,
                key=parse_public(found.key_line).key,
                role="agent",
                name=self.endpoint[0],
                now=time.time() + _RENEWAL_SECONDS,
                revoked=self.fleet.revocations(),
            )
        except (CertificateRefused, KeyFormatError):
            return False
        return certificate.groups == self.groups

    # --- what to do ---

    def packed_wheels(self) -> PackedWheels | None:
        return packed_wheels(self.wheel_dir, DISTRIBUTION, self.version) if self.wheel_dir is not None else None

    def sign(self, key_line: str) -> str:
        """Return the line of a new certificate for the agent."""
        assert self.fleet is not None
        key = parse_public(key_line).key
        data, _ = self.fleet.sign(key, "agent", (self.endpoint[0],), self.groups, _CERTIFICATE_SECONDS)
        return format_certificate(data, self.endpoint[0])

    def pin(self, key_line: str) -> None:
        if self.settings.public_key is None:
            self.known.pin(self.name, parse_public(key_line).key, self.endpoint[0])

    def failure(self) -> str | None:
        """Return why the agent is not reached as `@agent/HOST` will be, in the right version; None if it is."""
        trust = AgentTrust(self.known.path.parent, *self.endpoint, "strict", self.settings.public_key)
        client = AgentClient(
            *self.endpoint, identity=self.identity, check_key=trust.check, connect_seconds=_CONNECT_SECONDS
        )
        try:
            client.connect()
            version = client.info().get("version")
        except (AgentError, UntrustedAgent) as error:
            return str(error)
        finally:
            client.close()
        return None if version == self.version else f"{self.name} runs version {version}, not {self.version}"


# --- functions that pyinfra calls; False is a failure, and an exception would show a traceback ---


def _refuse(state: State, host: Host, problem: str) -> bool:
    logger.error(f"{host.print_prefix}{problem}")
    return False


def _confirm(state: State, host: Host, plan: _Plan, key_line: str | None) -> bool:
    if key_line is None:
        return _refuse(state, host, "the agent was started, and its key cannot be read: journalctl -u pyinfra-agent")
    try:
        plan.pin(key_line)
    except _EXPECTED as error:
        return _refuse(state, host, str(error))
    failure = plan.failure()
    if failure is not None:
        return _refuse(state, host, f"the agent runs, but @agent/{plan.name} is not reached from here: {failure}")
    logger.info(f"{host.print_prefix}@agent/{plan.name} answers: {fingerprint(parse_public(key_line).key)}")
    return True


def _forget(state: State, host: Host, known: KnownAgents, name: str) -> bool:
    try:
        known.remove(name)
    except UntrustedAgent as error:
        return _refuse(state, host, str(error))
    return True


# --- reading what the user wrote ---


def _endpoint(get: Any, host_name: str, settings: Settings, address: str | None) -> tuple[str, int]:  # noqa: ANN401
    """Return host and port as `@agent/...` will name them."""
    text = address or settings.host or get("ssh_hostname") or host_name.rpartition("/")[2]
    try:
        name = parse_agent_name(text)
    except BadAgentName as error:
        raise BadAgentName(f"{error}; or say by address= what is to stand there") from None
    if name.kind is not NameKind.AGENT:
        raise BadAgentName(f"{text!r} does not name one agent: say by address= what is to stand after @agent/")
    return name.host, name.port if name.port != DEFAULT_PORT else settings.port


def _known_agents(settings: Settings) -> KnownAgents:
    return KnownAgents(agent_home(settings.home) / KNOWN_AGENTS_FILE)


def _texts(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _check_line(line: str) -> None:
    options, rest = split_options(line)
    if "cert-authority" not in options:
        parse_public(rest)


def _meaning(line: str) -> tuple[frozenset[tuple[str, str | None]], tuple[str, ...]]:
    """Return what counts of a line, which is not its comment: options and key; no key if it cannot be read."""
    try:
        options, rest = split_options(line)
    except KeyFormatError:
        return frozenset(), ()
    return frozenset(options.items()), tuple(rest.split()[:2])


def _not_root(found: Installation) -> str:
    if found.uid is None:
        return "this host cannot be looked at: the error is above"
    return "an agent is installed and removed by root: log in as root, or add --sudo (_sudo=True in a deploy)"
