"""Knocks at addresses: is there an agent, and what is its key?

A knock is the first half of a handshake. The agent proves its key in message 2; ours would be in message 3, which is
never sent, and until then there is nothing but an ephemeral key made for this one connection. Nothing is pinned.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import ipaddress
import resource
import socket as plain_socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import gevent
from gevent import socket

from pyinfra_agent_protocol import AgentPayload, Initiator, NotAnAgent, ProtocolError
from pyinfra_agent_protocol.keys import KeyPair

from ._errors import one_line
from ._opening import seconds_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pyinfra_agent_protocol import AgentHello

__all__ = ["Outcome", "Probed", "Swept", "TooManyAddresses", "count_addresses", "probe", "sweep"]

#: For connection and answer. More than the second after which TCP repeats a lost SYN (RFC 6298 section 2).
PROBE_SECONDS: Final = 1.3
MAX_ADDRESSES: Final = 65_536
#: A /16 of silence then takes 23 s and 70 MiB (with 2,048 it took 43 s and 48 MiB), at 3,150 SYNs a second, each sent
#: twice. Local ports are no limit, as each connection goes to another address; and a firewall that keeps track of them
#: has the same number in its table either way, as it keeps each for 120 s. Twice as many would be a flood to some.
MAX_CONNECTIONS: Final = 4096

#: Linux asks this long for the hardware address of a neighbour that is not there, and keeps a place in its table.
_NEIGHBOUR_SECONDS: Final = 3.0
_NEIGHBOUR_LIMIT_FILE: Final = "/proc/sys/net/ipv4/neigh/default/gc_thresh3"
_NEIGHBOUR_LIMIT: Final = 1024
#: Errors that mean "too fast" and not "nobody there", and how often and after what time an address is tried again.
_TOO_FAST: Final = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN})
_PATIENCE_SECONDS: Final = (0.2, 0.5, 1.0)
_SPARE_DESCRIPTORS: Final = 256
_READ_BYTES: Final = 4096
_PROGRESS_SECONDS: Final = 0.5


class Outcome(enum.Enum):
    """What came of a knock."""

    AGENT = "an agent"
    REFUSED = "port closed"
    SILENT = "no answer"
    UNREACHABLE = "unreachable"
    OTHER = "something else listens"


@dataclass(frozen=True, slots=True)
class Probed:
    """One address.

    Attributes:
        address: as it was given.
        port: TCP port.
        outcome: what came of it.
        key: public key of the agent, proved; b"" without one.
        version: of the agent, as it says itself.
        seconds: until its answer; for the outcome AGENT this is two round trips.
        problem: in words, where something listens that is no agent we can speak to.
        certificate: that the agent shows, not verified; b"" for none.
    """

    address: str
    port: int
    outcome: Outcome
    key: bytes = b""
    version: str = ""
    seconds: float = 0.0
    problem: str = ""
    certificate: bytes = b""


@dataclass(frozen=True, slots=True)
class Swept:
    """All addresses of a network.

    Attributes:
        agents: in the order of their addresses.
        counts: how many addresses had which outcome.
        seconds: it took.
    """

    agents: tuple[Probed, ...]
    counts: Mapping[Outcome, int]
    seconds: float

    def __str__(self) -> str:
        others = [f"{count:,} {outcome.value}" for outcome, count in self.counts.items() if count]
        return f"{sum(self.counts.values()):,} addresses: {', '.join(others) or 'none'}"


class TooManyAddresses(ValueError):
    """A network is too large to knock at each of its addresses."""


def probe(address: str, port: int, seconds: float = PROBE_SECONDS) -> Probed:
    """Knock at *address*, which may be a name; never raises for what is or is not there.

    Who takes the connection in the second half of *seconds* has half of them more to answer in.
    """
    return _probe(address, port, seconds, KeyPair.generate())


def count_addresses(network: ipaddress.IPv4Network) -> int:
    """Return how many addresses of *network* can be hosts (RFC 3021: both of a /31).

    Raises:
        TooManyAddresses: they are more than 65,536.
    """
    if network.num_addresses > MAX_ADDRESSES:
        raise TooManyAddresses(
            f"{network} has {network.num_addresses:,} addresses, and at most {MAX_ADDRESSES:,} are tried: name smaller"
            " networks, such as /16 or /24 ones"
        )
    return network.num_addresses - (2 if network.prefixlen < 31 else 0)


def sweep(
    network: ipaddress.IPv4Network,
    port: int,
    *,
    is_attached: bool = False,
    progress: Callable[[int, int, int], None] = lambda done, total, agents: None,
) -> Swept:
    """Knock at every address of *network*, up to 4,096 at once, as far as the limit of open files allows.

    Args:
        network: at most a /16.
        port: TCP port.
        is_attached: the network is on a link of this machine. Then each address takes a place in the system's table of
            neighbours for three seconds, and half of the table is left to others.
        progress: gets twice a second how many addresses were tried, how many there are, and how many agents answered.

    Raises:
        TooManyAddresses: as `count_addresses`.
    """
    began = time.monotonic()
    total = count_addresses(network)
    with _descriptors(min(MAX_CONNECTIONS, total)) as allowed:
        slots = max(1, min(allowed, total, _neighbour_limit() // 2 if is_attached else MAX_CONNECTIONS))
        walk = _Sweep(network, port, _NEIGHBOUR_SECONDS if is_attached else 0.0)
        workers = [gevent.spawn(walk.run) for _ in range(slots)]
        try:
            while len(gevent.joinall(workers, timeout=_PROGRESS_SECONDS)) < slots:
                progress(sum(walk.counts.values()), total, len(walk.agents))
        finally:
            gevent.killall(workers)
    agents = sorted(walk.agents, key=lambda one: ipaddress.IPv4Address(one.address))
    counts = {outcome: walk.counts[outcome] for outcome in Outcome}
    return Swept(tuple(agents), counts, time.monotonic() - began)


class _Sweep:
    """What the greenlets of one sweep share: the addresses that are left, and what was found."""

    def __init__(self, network: ipaddress.IPv4Network, port: int, rest_seconds: float) -> None:
        self._addresses = iter(network.hosts())
        self._left = count_addresses(network)
        self._port = port
        self._rest_seconds = rest_seconds
        self._throw_away = KeyPair.generate()  # never sent: one will do
        self.agents: list[Probed] = []
        self.counts: Counter[Outcome] = Counter()

    def run(self) -> None:
        for address in self._addresses:
            self._left -= 1
            began = time.monotonic()
            found = _probe(str(address), self._port, PROBE_SECONDS, self._throw_away)
            self.counts[found.outcome] += 1
            if found.outcome is Outcome.AGENT:
                self.agents.append(found)
            elif found.outcome is Outcome.SILENT and self._rest_seconds:
                if not self._left:
                    return
                # Its place in the table of neighbours is taken until then.
                gevent.sleep(max(0.0, began + self._rest_seconds - time.monotonic()))


def _probe(address: str, port: int, seconds: float, throw_away: KeyPair) -> Probed:
    began = time.monotonic()
    for pause in (*_PATIENCE_SECONDS, None):
        try:
            hello = _knock(address, port, seconds, throw_away)
            said = AgentPayload.decode(hello.payload)
            seconds = time.monotonic() - began
            return Probed(
                address, port, Outcome.AGENT, hello.key, one_line(said.version), seconds, certificate=said.certificate
            )
        except NotAnAgent as error:
            return Probed(address, port, Outcome.OTHER, problem=str(error))
        except ProtocolError as error:
            return Probed(address, port, Outcome.OTHER, problem=f"the handshake failed: {error}")
        except ConnectionRefusedError:
            return Probed(address, port, Outcome.REFUSED)
        except TimeoutError:
            return Probed(address, port, Outcome.SILENT)
        except (ConnectionResetError, BrokenPipeError):
            return Probed(address, port, Outcome.OTHER, problem="it closed the connection")
        except OSError as error:
            if error.errno == errno.EHOSTUNREACH:  # a neighbour that does not answer, or a router that knows
                return Probed(address, port, Outcome.SILENT)
            if error.errno not in _TOO_FAST or pause is None:
                return Probed(address, port, Outcome.UNREACHABLE, problem=error.strerror or str(error))
        gevent.sleep(pause)
    raise AssertionError  # the last turn returns


def _knock(address: str, port: int, seconds: float, throw_away: KeyPair) -> AgentHello:
    began = time.monotonic()
    family = plain_socket.AF_INET
    target: tuple[object, ...] = (address, port)
    if not _is_ipv4(address):
        found = socket.getaddrinfo(address, port, type=plain_socket.SOCK_STREAM)
        family, _, _, _, target = found[0]
    sock = socket.socket(family, plain_socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect(target)
        initiator = Initiator(throw_away)
        sock.sendall(initiator.data_to_send())
        # Whoever was connected to late, because many were at once or it is far away, has time to answer all the same.
        deadline = max(began + seconds, time.monotonic() + seconds / 2)
        while True:
            sock.settimeout(seconds_left(deadline))
            data = sock.recv(_READ_BYTES)
            if not data:
                raise NotAnAgent("it closed the connection")
            hello = initiator.receive_data(data)
            if hello is not None:
                return hello
    finally:
        sock.close()


def _is_ipv4(address: str) -> bool:
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def _descriptors(wanted: int) -> Iterator[int]:
    """Allow this process *wanted* more open files while it lasts, as far as that may be; yield how many there are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else soft + wanted + _SPARE_DESCRIPTORS
    raised = max(soft, min(most, wanted + _SPARE_DESCRIPTORS))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_DESCRIPTORS
    try:
        yield max(16, min(wanted, allowed))
    finally:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _neighbour_limit() -> int:
    try:
        with open(_NEIGHBOUR_LIMIT_FILE, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _NEIGHBOUR_LIMIT
