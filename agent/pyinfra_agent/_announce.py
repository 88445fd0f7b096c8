"""Announces the agent on the directly attached links: DNS-SD over multicast DNS (RFC 6762, RFC 6763).

python-zeroconf does it, in a thread of its own with an event loop of its own; trio only tells it what changes, through
worker threads. Whatever fails there is one line in the log and another try, and nothing to the rest of the agent.

A name that somebody on the link has already is left to them, and `-2` put behind ours. Who claims our name later does
not get us to give it up: controllers know agents by their keys, and anybody could take a name away like that.

The machine's addresses are announced under a name that is only the agent's, `web1-agent.local` for `web1`. The name
`web1.local` belongs to the machine's own responder (avahi, systemd-resolved), whose answers, other ones on each link,
ours would replace in everybody's cache.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

import trio

from pyinfra_agent_protocol.advert import SERVICE

from ._addresses import AddressChanges, own_links
from ._lean import give_back
from ._limits import RareLog
from ._log import log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from ._addresses import Bound, Link
    from ._profile import Profile

__all__ = ["Responder", "announce"]

_TYPE: Final = f"{SERVICE}.local."
_RETRY_SECONDS: Final = (2.0, 10.0, 60.0, 300.0)
_GOODBYE_SECONDS: Final = 2.0
_MAX_ADDRESSES: Final = 16  # of all interfaces: with all else that is announced they fit one packet


class Responder:
    """Announces one agent. Its methods block for up to two seconds; one at a time is called, each from any thread."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._zeroconf: Any = None
        self._links: tuple[Link, ...] = ()
        self.name = ""

    def announce(self, links: tuple[Link, ...]) -> None:
        """Announce the agent on *links* and nowhere else; `name` is what it goes by from then on.

        Raises:
            Exception: python-zeroconf cannot do it; call `close`.
        """
        from zeroconf import Zeroconf

        if self._zeroconf is not None and not hasattr(self._zeroconf, "update_interfaces"):
            # Older releases keep to the interfaces that they were made with.
            if links == self._links:
                return
            self.close()
        if self._zeroconf is None:
            _log_what_zeroconf_says()
            self._zeroconf = Zeroconf(interfaces=_choices(links))
            self._register(links)
            give_back()
        else:
            # Also where nothing has changed to us: an IPv6 address cannot be used in its first second.
            self._zeroconf.update_interfaces(_choices(links))
            if links != self._links:
                self._zeroconf.update_service(self._service(self.name, links))
        self._links = links

    def close(self) -> None:
        """Say goodbye and announce nothing more."""
        zeroconf, self._zeroconf, self._links = self._zeroconf, None, ()
        if zeroconf is not None:
            zeroconf.close()

    def _register(self, links: tuple[Link, ...]) -> None:
        from zeroconf import NonUniqueNameException

        for name in self._profile.names():
            try:
                self._zeroconf.register_service(self._service(name, links))
            except NonUniqueNameException:
                continue
            self.name = name
            return
        raise RuntimeError(f"others have the name {self._profile.name} and all that are like it")

    def _service(self, name: str, links: tuple[Link, ...]) -> Any:  # noqa: ANN401 - imported where it is needed
        from zeroconf import ServiceInfo

        addresses = [address for link in links for address in link.addresses]
        addresses.sort(key=lambda address: (address.is_link_local, address.version))
        return ServiceInfo(
            _TYPE,
            f"{name}.{_TYPE}",
            port=self._profile.port,
            server=f"{name}-agent.local.",
            properties=b"".join(bytes([len(string)]) + string for string in self._profile.advert.strings()),
            addresses=[address.packed for address in addresses[:_MAX_ADDRESSES]],
        )


async def announce(
    profile: Profile,
    bound: Collection[Bound],
    chosen: Collection[str],
    wait_stopping: Callable[[], Awaitable[None]],
) -> None:
    """Announce the agent until *wait_stopping* returns, then say goodbye; cancelled, say nothing and end.

    Args:
        profile: what is announced.
        bound: what the agent listens on.
        chosen: names of the only interfaces to announce it on; none are all.
        wait_stopping: returns when the agent begins to stop.
    """
    responder = Responder(profile)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_follow, responder, bound, chosen)
        await wait_stopping()
        nursery.cancel_scope.cancel()
    deadline = trio.current_time() + _GOODBYE_SECONDS
    # Where it fails, others notice when the records are too old.
    with trio.CancelScope(shield=True, deadline=deadline), contextlib.suppress(Exception):
        await trio.to_thread.run_sync(responder.close, abandon_on_cancel=True)


async def _follow(responder: Responder, bound: Collection[Bound], chosen: Collection[str]) -> None:
    told: tuple[object, ...] = ()
    tries = 0
    with AddressChanges() as changes:
        while True:
            try:
                links = own_links(bound, chosen)
                if links:
                    await trio.to_thread.run_sync(responder.announce, links, abandon_on_cancel=True)
                else:
                    await trio.to_thread.run_sync(responder.close, abandon_on_cancel=True)
                tries = 0
                state: tuple[object, ...] = (responder.name, links)
                if state != told and links:
                    log(
                        "announced",
                        name=responder.name,
                        on=",".join(link.name for link in links),
                        addresses=_text(links),
                    )
                elif state != told:
                    log("not-announced", reason=_nowhere(chosen))
            except ModuleNotFoundError as error:
                log("not-announced", reason=f"the package {error.name} is missing: pip install 'pyinfra-agentd[agent]'")
                return
            except Exception as error:  # whatever it is, the agent goes on without
                state = (_reason(error),)
                if state != told:
                    log("not-announced", reason=_reason(error))
                with contextlib.suppress(Exception):
                    await trio.to_thread.run_sync(responder.close, abandon_on_cancel=True)
                tries += 1
            told = state
            with trio.move_on_after(_RETRY_SECONDS[min(tries, len(_RETRY_SECONDS)) - 1] if tries else float("inf")):
                await changes.wait()


def _choices(links: tuple[Link, ...]) -> list[str | int]:
    """Say it as python-zeroconf wants it: IPv4 by its addresses, IPv6 by the interface."""
    chosen: list[str | int] = []
    for link in links:
        chosen += [str(address) for address in link.addresses if address.version == 4]
        if any(address.version == 6 for address in link.addresses):
            chosen.append(link.index)
    return chosen


def _text(links: tuple[Link, ...]) -> str:
    return ",".join(str(address) for link in links for address in link.addresses)


def _nowhere(chosen: Collection[str]) -> str:
    what = f"none of the interfaces {', '.join(chosen)}" if chosen else "no interface"
    return f"{what} is up with an address that the agent listens on; it is looked for again when that changes"


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


class _Warnings(logging.Handler):
    """Turns what python-zeroconf warns of into a line now and then: hostile packets are one cause."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._log = RareLog("multicast-dns")

    def emit(self, record: logging.LogRecord) -> None:
        self._log.note(reason=record.getMessage()[:200])


def _log_what_zeroconf_says() -> None:
    logger = logging.getLogger("zeroconf")
    logger.propagate = False
    logger.handlers[:] = [_Warnings()]
