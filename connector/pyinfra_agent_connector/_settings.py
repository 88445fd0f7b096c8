"""The host data that this connector reads: names, meanings and defaults, the same for every generation of pyinfra.

It imports nothing of ours that is heavy: pyinfra loads every connector in every run, also where no host needs this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ._errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CONNECT_SECONDS", "DATA_KEYS", "RESUME_SECONDS", "DataKey", "Settings"]

#: The protocol's own constant is beside its cryptography, which takes some 50 ms to import; a test compares the two.
DEFAULT_PORT: Final = 7963
CONNECT_SECONDS: Final = 10
RESUME_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class DataKey:
    """One key of host data: what it means to a person, and its value where nobody sets it."""

    description: str
    default: Any = None


DATA_KEYS: Final = {
    "agent_host": DataKey("Address or name of the agent"),
    "agent_port": DataKey("TCP port of the agent", DEFAULT_PORT),
    "agent_public_key": DataKey("Key line of the agent (``pyinfra-agent key`` prints it); beats known_agents"),
    "agent_trust": DataKey(
        "``accept-new`` pins an unknown agent's key at first use, ``strict`` wants it pinned or certified, ``ca`` the"
        " same and says how to sign it (default: ``accept-new``; agents that only discovery named count as ``strict``)"
    ),
    "agent_connect_timeout": DataKey("Seconds for a connection to be accepted and welcomed", CONNECT_SECONDS),
    "agent_resume_timeout": DataKey("Seconds in which a lost connection may be resumed", RESUME_SECONDS),
    "agent_put": DataKey(
        "``replace`` lets an upload appear whole, by a rename; ``in-place`` overwrites an existing file once all has"
        " arrived, for one that is bind-mounted elsewhere",
        "replace",
    ),
    "agent_home": DataKey(
        "Directory of this controller's key and known_agents"
        " (default: $PYINFRA_AGENT_HOME, else $XDG_CONFIG_HOME/pyinfra-agent, else ~/.config/pyinfra-agent)"
    ),
    "agent_found_by": DataKey("Set by discovery: how it found this agent, which then has to be pinned"),
    "agent_announced_fingerprint": DataKey("Set by discovery: the key that the agent announces, which proves nothing"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """One host's data, checked.

    Attributes:
        host: address or name; "" if nobody set one.
        port: TCP port.
        public_key: the key line that the agent must have, or None.
        trust: `accept-new`, `strict` or `ca`; "" if nobody set it.
        connect_seconds: for a connection to be welcomed.
        resume_seconds: in which a lost one may be resumed.
        home: directory of the controller's key and pins, or None for the usual one.
        found_by: `mdns`, `probe` or `dns:ZONE` where the user did not name this agent; else "".
        announced_fingerprint: by which it is found again, if its address changes; "" if it announced none.
        put_in_place: uploads overwrite existing files instead of replacing them.
    """

    host: str
    port: int
    public_key: str | None
    trust: str
    connect_seconds: float
    resume_seconds: float
    home: str | None
    found_by: str = ""
    announced_fingerprint: str = ""
    put_in_place: bool = False

    @classmethod
    def read(cls, get: Callable[[str], Any]) -> Settings:
        """Return the settings that *get* finds; it returns None for a key that has no value.

        Raises:
            AgentError: a number is none, or a word is not one of those that it may be.
        """

        def value(name: str) -> Any:  # noqa: ANN401 - what the user wrote
            found = get(name)
            return DATA_KEYS[name].default if found is None else found

        def number(name: str, kind: type[int] | type[float]) -> Any:  # noqa: ANN401 - one of the two
            try:
                return kind(value(name))
            except (TypeError, ValueError):
                raise AgentError(f"host data {name} is {value(name)!r}: give a number") from None

        how = value("agent_put")
        if how not in ("replace", "in-place"):
            raise AgentError(f"host data agent_put is {how!r}: give replace or in-place")
        return cls(
            host=value("agent_host") or "",
            port=number("agent_port", int),
            public_key=value("agent_public_key"),
            trust=value("agent_trust") or "",
            connect_seconds=number("agent_connect_timeout", float),
            resume_seconds=number("agent_resume_timeout", float),
            home=value("agent_home"),
            found_by=value("agent_found_by") or "",
            announced_fingerprint=value("agent_announced_fingerprint") or "",
            put_in_place=how == "in-place",
        )
