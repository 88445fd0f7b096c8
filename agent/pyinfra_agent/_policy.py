"""What one controller may do here: the options of its line in `authorized_controllers`.

    from="10.0.0.0/8,2001:db8::/32"    only from these networks
    user=deploy                        commands and files as this user
    expires=2027-01-31                 not let in any more from then on (UTC); 2027-01-31T12:00 for an hour of the day
    no-exec no-put no-get no-pty       not these requests

Only `user=`, or all of no-exec, no-put and no-get, is a boundary: who may write files as root is root.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol import Exec, Get, KeyFormatError, Put, Stat
from pyinfra_agent_protocol.trust_lines import split_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyinfra_agent_protocol import Request

__all__ = ["OPTIONS", "Network", "Policy", "host_of"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_FLAGS: Final = ("no-exec", "no-put", "no-get", "no-pty")
OPTIONS: Final = frozenset({"from", "user", "expires", *_FLAGS})
#: What useradd(8) takes, and more, but nothing that a program could take for an option or another column.
_USER: Final = re.compile(r"[^\W\d-][\w.@\\$-]{0,254}")


@dataclass(frozen=True, slots=True)
class Policy:
    """What a controller may do; by itself everything that the agent can.

    Attributes:
        networks: where it may come from; None is everywhere.
        user: whom its commands and files belong to; None is the agent's own user.
        expires: seconds since 1970 from which on it is not let in; None is never.
        no_exec: no commands, also not those through which files are read or written.
        no_put: no file is written.
        no_get: no file is read or looked at.
        no_pty: no command gets a terminal.
    """

    networks: tuple[Network, ...] | None = None
    user: str | None = None
    expires: float | None = None
    no_exec: bool = False
    no_put: bool = False
    no_get: bool = False
    no_pty: bool = False

    @classmethod
    def parse(cls, options: Mapping[str, str | None]) -> Policy:
        """Return what *options* say, as `split_options` returns them.

        Raises:
            KeyFormatError: one of them is unknown, or its value is none.
        """
        for name, value in options.items():
            if name not in OPTIONS:
                raise KeyFormatError(f"there is no option {name}: there are {', '.join(sorted(OPTIONS))}")
            if (value is None) != (name in _FLAGS):
                raise KeyFormatError(f"the option {name} takes {'no' if name in _FLAGS else 'a'} value")
        return cls(
            networks=_networks(options["from"]) if "from" in options else None,
            user=_user(options["user"] or "") if "user" in options else None,
            expires=_moment(options["expires"] or "") if "expires" in options else None,
            **{flag.replace("-", "_"): flag in options for flag in _FLAGS},
        )

    def format(self) -> str:
        """Return the options that `parse` makes this policy of, separated by commas; "" where there are none."""
        words = []
        if self.networks is not None:
            words.append('from="{}"'.format(",".join(map(str, self.networks))))
        if self.user is not None:
            words.append(f'user="{self.user}"')
        if self.expires is not None:
            words.append(f"expires={_format_moment(self.expires)}")
        return ",".join([*words, *(flag for flag in _FLAGS if getattr(self, flag.replace("-", "_")))])

    def allows_source(self, peer: str) -> bool:
        """Tell whether a controller may come from *peer*, `host:port` with IPv6 in brackets."""
        if self.networks is None:
            return True
        host = host_of(peer)
        return host is not None and any(host in network for network in self.networks)

    def refusal(self, request: Request) -> str | None:
        """Return which option forbids *request*; None if it is allowed."""
        runs = isinstance(request, Exec) or (isinstance(request, Put | Get) and request.argv is not None)
        if self.no_exec and runs:
            return "no-exec"
        if self.no_pty and isinstance(request, Exec) and request.pty is not None:
            return "no-pty"
        if self.no_put and isinstance(request, Put):
            return "no-put"
        if self.no_get and isinstance(request, Get | Stat):
            return "no-get"
        return None

    def is_narrower_than(self, other: Policy) -> bool:
        """Tell whether *other* allows what this does not, so that what was begun under it must end.

        Times and sources are judged by who knows them.
        """
        if self.user != other.user:
            return True
        return any(
            getattr(self, field.name) and not getattr(other, field.name)
            for field in fields(self)
            if field.name.startswith("no_")
        )


def host_of(peer: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address in `host:port`; an IPv4 address within IPv6 as what it is; None if there is none."""
    host = peer.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _networks(value: str | None) -> tuple[Network, ...]:
    networks = []
    for text in split_values("from", value):
        try:
            # Strict: 10.0.0.1/8 is a slip, and which of the two it should be is not for us to guess.
            networks.append(ipaddress.ip_network(text))
        except ValueError:
            raise KeyFormatError(
                f"from takes networks such as 10.0.0.0/8 or 2001:db8::/32, or addresses: not {text}"
            ) from None
    return tuple(networks)


def _user(value: str) -> str:
    if not _USER.fullmatch(value):
        raise KeyFormatError("user takes the name of an account")
    return value


def _moment(value: str) -> float:
    try:
        moment = datetime.fromisoformat(value.removesuffix("Z"))
        if value.endswith("Z") and moment.tzinfo is not None:
            raise ValueError
        return moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp()
    except (ValueError, OverflowError):
        raise KeyFormatError("expires takes a date or a time in UTC: 2027-01-31 or 2027-01-31T12:00") from None


def _format_moment(seconds: float) -> str:
    text = datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None, microsecond=0).isoformat()
    return text.removesuffix("T00:00:00")
