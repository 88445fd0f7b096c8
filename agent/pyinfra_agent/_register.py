"""Registers the agent in a DNS zone, beyond the links that multicast reaches (RFC 2136, RFC 6763), signed with TSIG.

    _pyinfra-agent._tcp.ZONE            PTR   web1._pyinfra-agent._tcp.ZONE
    web1._pyinfra-agent._tcp.ZONE       SRV   0 0 7963 web1.pyinfra-agent.ZONE
                                        TXT   v=1 fp=... groups=...
    web1.pyinfra-agent.ZONE             A, AAAA

The addresses stand under a name of the agent's own, so that the machine's other records are never touched. Nobody
believes any of it: a record that an agent left behind leads to no answer, or to a key that is not the one expected.

A name is ours if its TXT record announces our key, or its addresses are ours (this machine, installed anew). Else it is
another agent's, and `-2` is put behind ours. Every update demands that the TXT record is still the one that was seen.
"""

from __future__ import annotations

import os
import random
import re
import socket
from typing import TYPE_CHECKING, Final

import trio

from pyinfra_agent_protocol.advert import SERVICE, BadAdvert, parse_advert

from ._addresses import AddressChanges, own_links
from ._log import log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    import dns.message
    import dns.name
    import dns.rdata
    import dns.tsig
    import dns.update

    from ._addresses import Bound, IpAddress
    from ._profile import Profile
    from ._settings import DnsZone

__all__ = ["BadKeyFile", "Registrar", "RegistrationFailed", "parse_key_file", "read_key_file", "register"]

DNS_PORT: Final = 53
TTL_SECONDS: Final = 120
REFRESH_SECONDS: Final = 900.0

_HOSTS: Final = "pyinfra-agent"
_ANSWER_SECONDS: Final = 5.0
_GOODBYE_SECONDS: Final = 3.0
_RETRY_SECONDS: Final = (5.0, 15.0, 60.0, 300.0, 900.0)
_MAX_RACES: Final = 5
_MAX_KEY_FILE_BYTES: Final = 4096
#: What tsig-keygen(8) writes and named.conf(5) includes.
_KEY: Final = re.compile(
    r"""\s*key\s+"?(?P<name>[^\s"{;]+)"?\s*\{\s*
        algorithm\s+"?(?P<algorithm>[\w.-]+)"?\s*;\s*
        secret\s+"?(?P<secret>[A-Za-z0-9+/=]+)"?\s*;\s*
        \}\s*;\s*""",
    re.VERBOSE | re.IGNORECASE,
)
_MEANINGS: Final = {
    "PeerBadKey": "the server does not know the key {key}",
    "PeerBadSignature": "the server has another secret for the key {key}",
    "PeerBadTime": "the clocks of this machine and the server differ by more than five minutes",
    "PeerBadTruncation": "the server wants a longer signature",
    "UnknownTSIGKey": "the server answers with another key than {key}",
    "Timeout": "no answer within 5 s",
}


class BadKeyFile(ValueError):
    """A TSIG key cannot be had; the text says why."""


class RegistrationFailed(Exception):
    """The zone is as it was; the text says who refused what."""


def parse_key_file(text: str) -> dns.tsig.Key:
    """Return the one TSIG key in *text*, as tsig-keygen(8) writes it.

    Raises:
        BadKeyFile: there is none.
    """
    import dns.exception
    import dns.tsig

    found = _KEY.fullmatch(text)
    if found is None:
        raise BadKeyFile('it is not key "NAME" { algorithm hmac-sha256; secret "BASE64"; }; as tsig-keygen writes it')
    try:
        key = dns.tsig.Key(found["name"], found["secret"], found["algorithm"])
        # Else an unknown algorithm would be noticed when the first message is signed.
        dns.tsig.get_context(key)  # type: ignore[no-untyped-call]
    except (ValueError, NotImplementedError, dns.exception.DNSException) as error:
        raise BadKeyFile(f"its algorithm or secret cannot be used: {type(error).__name__}") from None
    return key


def read_key_file(path: str | os.PathLike[str]) -> dns.tsig.Key:
    """Return the key in the file *path*, which must be closed to others.

    Raises:
        BadKeyFile: it cannot be read, is open to others, or holds no key.
    """
    try:
        with open(
            os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), encoding="ascii", errors="replace"
        ) as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            text = file.read(_MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise BadKeyFile(f"{path}: {os.strerror(error.errno or 0).lower()}") from None
    if mode & 0o007:
        raise BadKeyFile(f"{path} is open to every user (mode {mode:04o}): chmod o= {path}")
    try:
        return parse_key_file(text)
    except BadKeyFile as error:
        raise BadKeyFile(f"{path}: {error}") from None


class Registrar:
    """Keeps one agent's records in one zone; `name` is what it goes by there, "" before it is registered."""

    def __init__(self, zone: DnsZone, profile: Profile) -> None:
        import dns.name

        self._settings = zone
        self._profile = profile
        self._zone = dns.name.from_text(zone.zone)
        self._service = dns.name.from_text(SERVICE, self._zone)
        self._key: dns.tsig.Key | None = None
        self.name = ""

    async def register(self, addresses: Collection[IpAddress]) -> None:
        """Make the records say that the agent is at *addresses*; does nothing to others' records.

        Raises:
            RegistrationFailed: nothing was changed.
            BadKeyFile: there is no key to sign with.
        """
        self._key = read_key_file(self._settings.key_file)
        for name in (self.name,) if self.name else self._profile.names():
            for _ in range(_MAX_RACES):
                seen = await self._texts(name)
                if not await self._is_free(name, seen, addresses):
                    break
                if await self._replace(name, seen, addresses):
                    self.name = name
                    return
            else:
                raise RegistrationFailed(f"somebody else keeps changing {name} in {self._settings.zone}")
        if self.name:
            self.name = ""  # somebody took it while we were away
            await self.register(addresses)
            return
        raise RegistrationFailed(f"others have the name {self._profile.name} and all that are like it")

    async def remove(self) -> None:
        """Take the records back, unless they are another's by now.

        Raises:
            RegistrationFailed: they are still there.
        """
        if not self.name or self._key is None:
            return
        instance, host = self._instance(self.name), self._host(self.name)
        update = self._update()
        update.present(instance, self._text())
        update.delete(self._service, self._rdata("PTR", instance.to_text()))
        update.delete(instance)
        update.delete(host)
        await self._apply(update)

    async def _is_free(self, name: str, seen: tuple[dns.rdata.Rdata, ...], addresses: Collection[IpAddress]) -> bool:
        if not seen:
            return True
        for text in seen:
            try:
                if parse_advert(text.strings).fingerprint == self._profile.advert.fingerprint:  # type: ignore[attr-defined]
                    return True
            except BadAdvert:
                continue
        theirs: set[str] = set()
        for kind in ("A", "AAAA"):
            theirs.update(str(rdata) for rdata in await self._ask(self._host(name), kind))
        return not theirs.isdisjoint(map(str, addresses))

    async def _replace(self, name: str, seen: tuple[dns.rdata.Rdata, ...], addresses: Collection[IpAddress]) -> bool:
        """Return False if the name's text is not what was *seen* any more."""
        instance, host = self._instance(name), self._host(name)
        update = self._update()
        if seen:
            update.present(instance, *seen)
        else:
            update.absent(instance, "TXT")
        update.delete(instance)
        update.add(instance, TTL_SECONDS, self._rdata("SRV", f"0 0 {self._profile.port} {host}"))
        update.add(instance, TTL_SECONDS, self._text())
        update.delete(host)
        for address in addresses:
            update.add(host, TTL_SECONDS, self._rdata("A" if address.version == 4 else "AAAA", str(address)))
        update.add(self._service, TTL_SECONDS, self._rdata("PTR", instance.to_text()))
        return await self._apply(update)

    async def _apply(self, update: dns.update.UpdateMessage) -> bool:
        import dns.rcode

        code = (await self._send(update)).rcode()
        if code in (dns.rcode.YXDOMAIN, dns.rcode.YXRRSET, dns.rcode.NXDOMAIN, dns.rcode.NXRRSET):
            return False
        if code != dns.rcode.NOERROR:
            raise RegistrationFailed(
                f"the server {self._settings.server_text} answers {dns.rcode.to_text(code)} to an update of"
                f" {self._settings.zone}: is it the zone's primary, and may the key {self._key_name} update it?"
            )
        return True

    async def _texts(self, name: str) -> tuple[dns.rdata.Rdata, ...]:
        return await self._ask(self._instance(name), "TXT")

    async def _ask(self, name: dns.name.Name, kind: str) -> tuple[dns.rdata.Rdata, ...]:
        import dns.message
        import dns.rdatatype

        answer = await self._send(dns.message.make_query(name, kind))
        return tuple(
            rdata
            for rrset in answer.answer
            if rrset.name == name and rrset.rdtype == dns.rdatatype.from_text(kind)
            for rdata in rrset
        )

    async def _send(self, message: dns.message.Message) -> dns.message.Message:
        import dns.asyncquery
        import dns.exception

        if self._key is not None:
            message.use_tsig(self._key)
        host, port = self._settings.server
        try:
            # Our own deadline as well: looking up the server's name has none.
            with trio.fail_after(2 * _ANSWER_SECONDS):
                found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                address = found[0][4]
                return await dns.asyncquery.tcp(message, str(address[0]), timeout=_ANSWER_SECONDS, port=port)
        except (dns.exception.DNSException, OSError, EOFError, trio.TooSlowError) as error:
            name = type(error).__name__ if not isinstance(error, trio.TooSlowError) else "Timeout"
            said = getattr(error, "strerror", None) or str(error) or name
            why = _MEANINGS.get(name, said).format(key=self._key_name)
            raise RegistrationFailed(f"the server {self._settings.server_text}: {why}") from None

    def _update(self) -> dns.update.UpdateMessage:
        import dns.update

        return dns.update.UpdateMessage(self._zone)

    def _text(self) -> dns.rdata.Rdata:
        strings = (string.decode("utf-8").replace("\\", "\\\\").replace('"', '\\"') for string in self._strings())
        return self._rdata("TXT", " ".join(f'"{string}"' for string in strings))

    def _strings(self) -> tuple[bytes, ...]:
        return self._profile.advert.strings()

    def _rdata(self, kind: str, text: str) -> dns.rdata.Rdata:
        import dns.rdata

        return dns.rdata.from_text("IN", kind, text)

    def _instance(self, name: str) -> dns.name.Name:
        import dns.name

        return dns.name.from_text(name, self._service)

    def _host(self, name: str) -> dns.name.Name:
        import dns.name

        return dns.name.from_text(f"{name}.{_HOSTS}", self._zone)

    @property
    def _key_name(self) -> str:
        return self._key.name.to_text(omit_final_dot=True) if self._key is not None else ""


async def register(
    profile: Profile,
    bound: Collection[Bound],
    zone: DnsZone,
    chosen: Collection[str],
    wait_stopping: Callable[[], Awaitable[None]],
) -> None:
    """Keep the agent registered in *zone* until *wait_stopping* returns, then remove it; cancelled, leave it there.

    Args:
        profile: what is registered.
        bound: what the agent listens on.
        zone: where.
        chosen: names of the only interfaces whose addresses are registered; none are all.
        wait_stopping: returns when the agent begins to stop.
    """
    try:
        import ifaddr  # noqa: F401 - by which _addresses looks

        registrar = Registrar(zone, profile)
    except ModuleNotFoundError as error:
        log(
            "not-registered",
            zone=zone.zone,
            reason=f"the package {error.name} is missing: pip install dnspython zeroconf",
        )
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep, registrar, bound, zone, chosen)
        await wait_stopping()
        nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _GOODBYE_SECONDS):
        try:
            await registrar.remove()
        except Exception as error:  # the record stays, and is harmless
            log("not-unregistered", zone=zone.zone, reason=str(error) or type(error).__name__)


async def _keep(registrar: Registrar, bound: Collection[Bound], zone: DnsZone, chosen: Collection[str]) -> None:
    told: tuple[object, ...] = ()
    tries = 0
    with AddressChanges() as changes:
        while True:
            addresses = _addresses(bound, chosen)
            try:
                if addresses:
                    await registrar.register(addresses)
                    state: tuple[object, ...] = (registrar.name, addresses)
                    if state != told:
                        log("registered", zone=zone.zone, name=registrar.name, addresses=",".join(map(str, addresses)))
                else:
                    state = ("no address",)
                    if state != told:
                        log("not-registered", zone=zone.zone, reason="this machine has no address to register")
                tries = 0
            except Exception as error:  # whatever a server makes of us, the agent goes on without
                reason = str(error) or type(error).__name__
                state = (reason,)
                if state != told:
                    log("not-registered", zone=zone.zone, reason=reason)
                tries += 1
            told = state
            # Thousands of agents that lost one server do not come back to it at once.
            seconds = _RETRY_SECONDS[min(tries, len(_RETRY_SECONDS)) - 1] if tries else REFRESH_SECONDS
            await _wait_change(changes, bound, chosen, addresses, seconds * random.uniform(0.8, 1.2))


async def _wait_change(
    changes: AddressChanges,
    bound: Collection[Bound],
    chosen: Collection[str],
    before: tuple[IpAddress, ...],
    seconds: float,
) -> None:
    with trio.move_on_after(seconds):
        while _addresses(bound, chosen) == before:
            await changes.wait()


def _addresses(bound: Collection[Bound], chosen: Collection[str]) -> tuple[IpAddress, ...]:
    """Return those at which others than the neighbours may reach this machine."""
    try:
        links = own_links(bound, chosen)
    except OSError:  # a sandbox that forbids asking for them
        return ()
    return tuple(address for link in links for address in link.addresses if not address.is_link_local)
