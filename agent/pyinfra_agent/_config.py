"""The configuration file: TOML, read once, into `Settings`.

Reading it is pure: text in, settings or the complete list of what is wrong out. Durations are numbers of seconds.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pyinfra_agent_protocol import DEFAULT_PORT

from ._config_discovery import DNS_EXPECTED, GROUPS_EXPECTED, read_dns, read_groups, read_interfaces, show_dns
from ._drain import Drain
from ._log import LogFormat
from ._settings import Cgroups, OnLost, Settings
from ._upload import SyncPolicy

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable

__all__ = [
    "ConfigError",
    "changed_keys",
    "default_config_path",
    "format_config",
    "load_config",
    "parse_address",
    "parse_config",
]

_HOUR_SECONDS: Final = 3_600
_WEEK_SECONDS: Final = 7 * 24 * _HOUR_SECONDS
_FILE_MAX_BYTES: Final = 1 << 20
_SHOWN_CHARACTERS: Final = 60


class ConfigError(Exception):
    """A configuration that cannot be used.

    Attributes:
        lines: what is wrong, one complaint a line, each with the file's name.
    """

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def default_config_path() -> Path:
    """Return `/etc/pyinfra-agent/agent.toml` for root, else a file under `$XDG_CONFIG_HOME` or `~/.config`.

    For a service, whoever it runs as, systemd says where it is (ConfigurationDirectory=).
    """
    if os.path.isabs(directory := os.environ.get("CONFIGURATION_DIRECTORY", "")):
        return Path(directory, "agent.toml")
    if os.geteuid() == 0:
        return Path("/etc/pyinfra-agent/agent.toml")
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.config"), "pyinfra-agent/agent.toml")


def load_config(path: Path | None = None) -> Settings:
    """Return the settings of the file *path*, which has to be there; without one, of the usual file if it is.

    Raises:
        ConfigError: the file cannot be read, or what it says cannot be used.
    """
    place = default_config_path() if path is None else path
    try:
        with open(os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            content = file.read(_FILE_MAX_BYTES + 1)
    except OSError as error:
        if path is None and error.errno in (errno.ENOENT, errno.ENOTDIR):
            return parse_config("", str(place))
        raise ConfigError([f"{place}: {os.strerror(error.errno or 0).lower()}"]) from error
    if len(content) > _FILE_MAX_BYTES:
        raise ConfigError([f"{place}: longer than {_FILE_MAX_BYTES} bytes, which no configuration is"])
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError([f"{place}: line {line} is not UTF-8"]) from error
    return parse_config(text, str(place))


def parse_config(text: str, name: str) -> Settings:
    """Return the settings that the TOML *text* makes; *name* is what errors call the file.

    The state directory stays None where the text names none: what is usual depends on the user.

    Raises:
        ConfigError: with a line for everything that is wrong.
    """
    try:
        table = _parse_toml(text) if text else {}
    except (RecursionError, ValueError) as error:
        raise ConfigError([f"{name}: {_one_line(str(error))}"]) from error
    complaints = []
    settings = Settings(listen=((None, DEFAULT_PORT),), umask=_LOGIN_UMASK, nice=0, cgroups=Cgroups.AUTO)
    for word, value in table.items():
        key = _KEYS.get(word)
        if key is None:
            complaints.append(f"{name}: {_one_line(word)}: there is no such key{_nearest(word)}")
            continue
        try:
            settings = key.put(settings, key.read(value))
        except ValueError:
            complaints.append(f"{name}: {word}: found {_shown(value)}, expected {key.expected}")
    if complaints:
        raise ConfigError(complaints)
    return settings


def format_config(settings: Settings) -> str:
    """Return *settings*, whose state directory is known, as a configuration file that says all of it."""
    return "".join(f"{word} = {_toml(key.show(settings))}\n" for word, key in _KEYS.items())


def changed_keys(before: Settings, after: Settings) -> list[str]:
    """Return the keys of the file in whose values the two differ."""
    return [word for word, key in _KEYS.items() if key.show(before) != key.show(after)]


def parse_address(text: str) -> tuple[str | None, int]:
    """Read `HOST:PORT`, `[IPV6]:PORT` or `:PORT`; the host is None for every address.

    Raises:
        ValueError: it is none of these; the text says what it should look like.
    """
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        separator = ""
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{text!r} is not HOST:PORT, like 0.0.0.0:{DEFAULT_PORT} or [::1]:{DEFAULT_PORT}")
    return host or None, int(port)


#: What a login has, with sshd as with a console, unless pam_umask was told otherwise.
_LOGIN_UMASK: Final = 0o022


@dataclass(frozen=True, slots=True)
class _Key:
    """One key of the file.

    Attributes:
        expected: what it takes, in words.
        read: turns TOML's value into the setting's; raises ValueError where it is not what is expected.
        put: returns settings that have the value.
        show: returns, from settings, what TOML (and JSON) would say.
    """

    expected: str
    read: Callable[[object], Any]
    put: Callable[[Settings, Any], Settings]
    show: Callable[[Settings], object]


def _parse_toml(text: str) -> dict[str, Any]:
    # Most agents have no configuration file, and need no parser.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{word} = {_toml(inner)}' for word, inner in value.items())}}}"
    # JSON's strings, numbers, arrays and booleans are TOML's, too.
    return json.dumps(value, ensure_ascii=False)


def _field(name: str, expected: str, read: Callable[[object], Any], show: Callable[[Any], object]) -> _Key:
    return _Key(
        expected,
        read,
        lambda settings, value: replace(settings, **{name: value}),
        lambda settings: show(getattr(settings, name)),
    )


def _seconds(name: str, most: int) -> _Key:
    return _field(name, _seconds_up_to(most), lambda value: _number(value, most), _shortest)


def _seconds_up_to(most: int) -> str:
    return f"a number of seconds from 0 to {most}"


def _number(value: object, most: int) -> float:
    # NaN is not between any two numbers.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError
    return float(value)


def _shortest(number: float) -> float:
    return int(number) if number == int(number) else number


def _count(name: str, least: int, most: int) -> _Key:
    return _field(name, f"a whole number from {least} to {most}", lambda value: _whole(value, least, most), _same)


def _whole(value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError
    return value


def _choice(name: str, choices: type[enum.Enum]) -> _Key:
    def read(value: object) -> enum.Enum:
        if not isinstance(value, str):
            raise ValueError
        return choices(value)

    words = [f'"{choice.value}"' for choice in choices]
    return _field(name, f"{', '.join(words[:-1])} or {words[-1]}", read, lambda choice: choice.value)


def _same(value: object) -> object:
    return value


def _read_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _read_umask(value: object) -> int:
    if not isinstance(value, str) or not re.fullmatch("0?[0-7]{3}", value):
        raise ValueError
    return int(value, 8)


def _read_bytes(value: object) -> int | None:
    if isinstance(value, str) and (found := re.fullmatch(r"(\d{1,12})([KMGT])", value)):
        value = int(found[1]) << 10 * (" KMGT".index(found[2]))
    return _whole(value, 0, 1 << 60) or None


def _read_tasks(value: object) -> int | None:
    return _whole(value, 0, 100_000) or None


def _read_directory(value: object) -> Path:
    if not isinstance(value, str) or not os.path.isabs(value) or "\0" in value:
        raise ValueError
    return Path(value)


def _read_addresses(value: object) -> tuple[tuple[str | None, int], ...]:
    addresses = []
    for address in value if isinstance(value, list) else [value]:
        if not isinstance(address, str):
            raise ValueError
        addresses.append(parse_address(address))
    if not addresses:
        raise ValueError
    return tuple(addresses)


def _show_address(address: tuple[str | None, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in (host or "") else f"{host or ''}:{port}"


#: Every key, in the order in which a person would want to read them.
_KEYS: Final = {
    "listen": _field(
        "listen",
        f'HOST:PORT, like "0.0.0.0:{DEFAULT_PORT}" or "[::1]:{DEFAULT_PORT}", or a list of them',
        _read_addresses,
        lambda addresses: list(map(_show_address, addresses)),
    ),
    "state_dir": _field("state_dir", "an absolute path", _read_directory, str),
    "announce": _field("announce", "true or false", _read_flag, _same),
    "announce_interfaces": _field(
        "announce_interfaces", 'a list of interfaces, like ["eth0"], or [] for all', read_interfaces, list
    ),
    "groups": _field("groups", GROUPS_EXPECTED, read_groups, list),
    "dns": _field("dns", DNS_EXPECTED, read_dns, show_dns),
    "max_commands": _count("commands_max", 1, 100_000),
    "umask": _field("umask", 'an octal number in quotes, like "022"', _read_umask, lambda umask: f"{umask:03o}"),
    "nice": _count("nice", -20, 19),
    "cgroups": _choice("cgroups", Cgroups),
    "max_memory": _field(
        "memory_max_bytes",
        'a number of bytes, or a text like "512M" or "2G", or 0 for no limit',
        _read_bytes,
        lambda count: count or 0,
    ),
    "max_tasks": _field(
        "tasks_max", "a whole number from 0 (no limit) to 100000", _read_tasks, lambda count: count or 0
    ),
    "grace": _seconds("grace_seconds", _HOUR_SECONDS),
    "drain": _Key(
        _seconds_up_to(_HOUR_SECONDS),
        lambda value: _number(value, _HOUR_SECONDS),
        lambda settings, value: replace(settings, drain=Drain(min(Drain().quiet_seconds, value), value)),
        lambda settings: _shortest(settings.drain.most_seconds),
    ),
    "on_lost": _choice("on_lost", OnLost),
    "on_lost_after": _seconds("on_lost_after_seconds", _WEEK_SECONDS),
    "session_ttl": _seconds("session_ttl_seconds", _WEEK_SECONDS),
    "stop": _seconds("stop_seconds", _HOUR_SECONDS),
    "sync": _choice("sync", SyncPolicy),
    "log": _choice("log", LogFormat),
}


def _nearest(word: str) -> str:
    import difflib

    near = difflib.get_close_matches(word, _KEYS, n=1, cutoff=0.5)
    return f"; is {near[0]} meant?" if near else f"; the keys are {', '.join(_KEYS)}"


def _shown(value: object) -> str:
    text = _one_line(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
