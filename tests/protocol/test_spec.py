"""SPEC.md says what the code does: its example byte for byte, its fields and defaults, its numbers."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from pyinfra_agent_protocol import _constants, _constants_link, _digest, _messages, advert, keys
from pyinfra_agent_protocol._digest import Digest
from pyinfra_agent_protocol._frames import FrameType, encode_counter
from pyinfra_agent_protocol._handshake import encode_denied, encode_goodbye, encode_welcome
from pyinfra_agent_protocol._link import Initiator, Responder
from pyinfra_agent_protocol._messages import (
    AgentPayload,
    Cancel,
    ControllerPayload,
    End,
    Exec,
    ExecResult,
    Info,
    InfoResult,
    Message,
    Ping,
    Resize,
    Signal,
    Welcome,
)
from pyinfra_agent_protocol._noise import KeyPair, Suite
from pyinfra_agent_protocol._session import Session, Side
from pyinfra_agent_protocol.advert import Advert, BadAdvert, parse_advert
from tests.protocol.helpers import Wire, frame

SPEC = (Path(__file__).parents[2] / "protocol" / "SPEC.md").read_text()


def section(number):
    """Return the text of section *number*, with its subsections."""
    (text,) = re.findall(rf"^## {number}\. .*?(?=^## |\Z)", SPEC, re.MULTILINE | re.DOTALL)
    return text


# --- the example ---

#: Two digits at a time with single spaces between them; what a person reads stands behind two spaces or more.
HEX = re.compile(r" {4,}((?:[0-9a-f]{2})+(?: (?:[0-9a-f]{2})+)*)(?: {2,}.*)?")


def blocks(text):
    """Return the bytes of each indented block of hexadecimal digits."""
    found: list[bytes] = []
    inside = False
    for line in text.splitlines():
        digits = HEX.fullmatch(line)
        # A line without digits within a block goes on with the words of the one before.
        if digits and not inside:
            found.append(b"")
        if digits:
            found[-1] += bytes.fromhex(digits[1])
        inside = bool(line.strip()) and line.startswith("    ")
    return found


def counting(start):
    return KeyPair.from_secret(bytes(range(start, start + 32)))


CONTROLLER, AGENT, CONTROLLER_EPHEMERAL, AGENT_EPHEMERAL = map(counting, (0x00, 0x20, 0x40, 0x60))
OPENING = ControllerPayload(bytes(range(16)), 1, False, version="1.0")


def set_up():
    """Return what section 15.2 shows, in its order."""
    suites = (Suite.CHACHAPOLY,)
    initiator = Initiator(CONTROLLER, suites=suites, ephemeral_for_tests=CONTROLLER_EPHEMERAL)
    responder = Responder(AGENT, AgentPayload().encode(), suites=suites, ephemeral_for_tests=AGENT_EPHEMERAL)
    first = initiator.data_to_send()
    responder.receive_data(first)
    second = responder.data_to_send()
    assert initiator.receive_data(second).key == AGENT.public
    third, _ = initiator.finish(OPENING.encode())
    assert responder.receive_data(third).key == CONTROLLER.public
    transport = responder.transport()
    answer = encode_welcome(Welcome("new", 0, 256, 600, version="1.0", hostname="web1"))
    return [
        first,
        second,
        AgentPayload().encode(),
        third,
        OPENING.encode(),
        transport.handshake_hash,
        transport.encrypt(answer),
        answer,
    ]


def one_command(wire):
    """Return what section 15.3 shows."""
    shown = []
    channel = wire.connector.open(Exec((b"sh", b"-c", b"cat; echo oops >&2; exit 3"), stdin=True))
    wire.connector.send_data(channel, b"hello\n")
    wire.connector.send_end(channel)
    shown.append(wire.write(Side.CONNECTOR))
    wire.deliver(Side.CONNECTOR)
    wire.agent.consume(channel, 6)
    wire.agent.send_data(channel, b"hello\n")
    wire.agent.send_data(channel, b"oops\n", stream=1)
    wire.agent.send_result(channel, ExecResult(3))
    shown.append(wire.write(Side.AGENT))
    wire.deliver(Side.AGENT)
    wire.connector.open(Info())
    shown.append(wire.write(Side.CONNECTOR))
    wire.deliver(Side.CONNECTOR)
    return shown


def lost_link(wire):
    """Return what section 15.4 shows."""
    wire.agent.send_result(2, InfoResult({"hostname": "web1"}))
    wire.write(Side.AGENT)
    wire.cut()
    shown = [
        ControllerPayload(bytes(range(16)), 2, True, wire.connector.received, "1.0").encode(),
        encode_welcome(Welcome("resumed", wire.agent.received, 256, 600, version="1.0", hostname="web1")),
    ]
    wire.resume()
    assert wire.write(Side.CONNECTOR) is None
    shown.append(wire.write(Side.AGENT))
    return shown


def other_frames():
    """Return the one block of section 15.5."""
    digest = Digest()
    digest.update(b"hello\n")
    return [
        frame(FrameType.PING, 0, Ping(7).encode())
        + frame(FrameType.SIGNAL, 2, Signal(15).encode())
        + frame(FrameType.RESIZE, 2, Resize(24, 80).encode())
        + frame(FrameType.CANCEL, 2, Cancel().encode())
        + frame(FrameType.CREDIT, 2, encode_counter(262_144))
        + frame(FrameType.BLOCKED, 2, encode_counter(131_072))
        + frame(FrameType.END, 2, End(6, digest.digest()).encode())
        + encode_goodbye("stopping", "the agent is being restarted")
        + encode_denied()
    ]


#: What the blocks of section 15 are, in their order.
SHOWN = (
    "preface and message 1",
    "preface and message 2",
    "payload of message 2",
    "message 3",
    "payload of message 3",
    "handshake hash",
    "first record",
    "WELCOME new",
    "exec",
    "answer to exec",
    "info",
    "payload of message 3 on the second link",
    "WELCOME resumed",
    "answer to info",
    "other frames",
)
#: Those whose length the text states.
MEASURED = (
    "preface and message 1",
    "preface and message 2",
    "message 3",
    "first record",
    "exec",
    "answer to exec",
    "info",
)


@pytest.fixture(scope="module")
def example():
    wire = Wire(Session(Side.CONNECTOR), Session(Side.AGENT))
    return dict(zip(SHOWN, [*set_up(), *one_command(wire), *lost_link(wire), *other_frames()], strict=True))


@pytest.mark.parametrize("what", SHOWN)
def test_example_is_what_the_code_sends(example, what):
    assert blocks(section(15))[SHOWN.index(what)].hex(" ") == example[what].hex(" ")


def test_example_shows_nothing_else():
    assert len(blocks(section(15))) == len(SHOWN)


@pytest.mark.parametrize("what", MEASURED)
def test_example_says_how_long_it_is(example, what):
    assert f" {len(example[what])} bytes" in " ".join(section(15).split())


def test_example_names_the_keys_that_it_uses():
    text = section(15)
    for pair in (CONTROLLER, AGENT, CONTROLLER_EPHEMERAL, AGENT_EPHEMERAL):
        assert f"`{pair.secret[:3].hex()}…{pair.secret[-1]:02x}`" in text
        assert f"`{pair.public.hex()}`" in text
    assert f"`{keys.fingerprint(AGENT.public)}`" in text


def test_lines_of_keys_are_what_the_code_writes():
    text = section(3)
    assert keys.format_public(CONTROLLER.public, "admin@example") in text
    assert keys.format_secret(CONTROLLER, "admin@example") in text
    assert keys.fingerprint(CONTROLLER.public) in text


# --- messages ---


def declared():
    kinds = (value for value in vars(_messages).values() if isinstance(value, type) and issubclass(value, Message))
    return sorted((kind for kind in kinds if hasattr(kind, "NAME")), key=lambda kind: kind.NAME)


def described():
    """Return the part of section 9 about each message: from the line that it begins to the next one's."""
    names = "|".join(kind.NAME for kind in declared())
    parts = re.split(rf"^(?:#### |`)({names})(?:`[,: ]|$)", section(9), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def default_in_words(field):
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None:
        return "nil"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    if isinstance(field.default, int):
        return f"{field.default:,}"
    if field.default == b"":
        return "empty"
    return f'`"{field.default}"`' if not field.default else f"`{field.default}`"


def test_every_message_is_described_once():
    assert sorted(described()) == [kind.NAME for kind in declared()]


@pytest.mark.parametrize("kind", declared(), ids=lambda kind: kind.NAME)
def test_message_is_described_with_its_fields_and_defaults(kind):
    rows = re.findall(r"^\| (`[^|\n]*`) \|[^|\n]*\| ([^|\n]*) \|[^|\n]*\|$", described()[kind.NAME], re.MULTILINE)
    found = {name: default for names, default in rows for name in re.findall(r"`([a-z_]+)`", names)}
    found.pop("request", None)  # tells the messages apart, so it is in none of them
    assert found == {field.name: default_in_words(field) for field in dataclasses.fields(kind)}


def test_every_frame_type_stands_in_the_table():
    rows = re.findall(r"^\| (\d+) \| ([A-Z]+) \|", section(6), re.MULTILINE)
    assert {name: int(number) for number, name in rows} == {kind.name: kind.value for kind in FrameType}


# --- discovery ---

SHOWN_ADVERT = Advert(keys.fingerprint(CONTROLLER.public), ("web", "db"), software="1.0")


def test_advert_is_shown_as_the_code_writes_it():
    strings = [string.decode() for string in SHOWN_ADVERT.strings()]
    assert f"TXT   {' '.join(strings)}\n" in section(17)
    assert f"service type is `{advert.SERVICE}`" in section(17)
    assert f"at most {advert.MAX_ADVERT_BYTES} bytes in all" in section(17)


def test_keys_of_an_advert_stand_in_the_table_with_their_defaults():
    rows = re.findall(r"^\| `([a-z]+)` \| [^|\n]* \| (required|empty) \|$", section(17), re.MULTILINE)
    full = Advert(SHOWN_ADVERT.fingerprint, ("web",), "Debian", "x86_64", "1.0")
    values = dict(string.decode().split("=") for string in full.strings())
    assert [key for key, _ in rows] == list(values)
    for key, default in rows:
        left = [f"{other}={value}".encode() for other, value in values.items() if other != key]
        if default == "required":
            with pytest.raises(BadAdvert):
                parse_advert(left)
        else:
            bare = {"groups": (), "os": "", "arch": "", "software": ""}
            name = {"sw": "software"}.get(key, key)
            assert parse_advert(left) == dataclasses.replace(full, **{name: bare[name]})


def test_reader_of_an_advert_ignores_and_passes_over_what_the_text_says():
    first = [b"v=1", f"fp={SHOWN_ADVERT.fingerprint}".encode()]
    read = parse_advert([b"V=1", *first[1:], b"new=x", b"flag", b"v=2", b"os=\x1b[2J", b"arch=" + b"x" * 65])
    assert read == Advert(SHOWN_ADVERT.fingerprint)
    groups = ",".join(["all", "-x", ".x", "x y", "g" * 65, *(f"g{number}" for number in range(40))]).encode()
    assert parse_advert([*first, b"groups=" + groups]).groups == tuple(
        f"g{number}" for number in range(advert.MAX_GROUPS)
    )
    for wrong in (
        [first[0]],
        first[1:],
        [b"v=01", first[1]],
        [b"v=1000", first[1]],
        [b"v=0", first[1]],
        [*first, *[b"x"] * 63],
    ):
        with pytest.raises(BadAdvert):
            parse_advert(wrong)
    assert parse_advert([*first, *[b"x"] * 62]).version == 1
    text = section(17)
    for limit in (f"at most {advert.MAX_GROUPS} inventory groups", f"at most {advert.MAX_WORD_CHARACTERS} characters"):
        assert limit in text
    assert "more than 64 strings" in text


def test_names_of_an_agent_are_those_that_it_announces_and_registers(monkeypatch):
    """Its own package makes them; this one announces nothing."""
    pytest.importorskip("zeroconf")
    announce = pytest.importorskip("pyinfra_agent._announce")
    profile = pytest.importorskip("pyinfra_agent._profile")
    register = pytest.importorskip("pyinfra_agent._register")
    one = profile.Profile("web1", _constants.DEFAULT_PORT, SHOWN_ADVERT)
    service = announce.Responder(one)._service("web1", ())
    text = section(17)
    assert f"{service.name.rstrip('.')}     SRV   0 0 {service.port} {service.server.rstrip('.')}\n" in text
    assert f"`web1.{register._HOSTS}` in the zone" in text
    assert f"{register.TTL_SECONDS} seconds" in text
    assert f"about every {register.REFRESH_SECONDS:g} seconds" in text
    assert [*one.names()][:3] == ["web1", "web1-2", "web1-3"]
    assert "at most 48 characters" in text
    for host, name in (("Web_1..example", "web-1"), ("-" * 60, "agent"), ("a" * 60, "a" * 48)):
        monkeypatch.setattr(profile.socket, "gethostname", lambda host=host: host)
        assert profile.machine_name() == name


# --- numbers ---

NAMES = (
    vars(_constants)
    | vars(_constants_link)
    | vars(_digest)
    | {"KEY_COMMENT": keys.MAX_COMMENT_CHARACTERS, "DIGEST": _digest.DIGEST_BYTES}
)


def mebibytes(name):
    whole, rest = divmod(NAMES[name], 1024 * 1024)
    assert not rest
    return f"{whole} MiB"


def amount(name):
    return f"{NAMES[name]:,}"


SPECIFIED = {
    "version": amount("VERSION"),
    "default port": f"{_constants.DEFAULT_PORT}, TCP",
    "key": f"{amount('KEY')} bytes",
    "comment of a key": f"{amount('KEY_COMMENT')} characters",
    "suites in an offer": f"1 to {amount('MAX_SUITES')}",
    "message 1": f"{amount('KEY')} bytes",
    "messages 2 and 3": f"{amount('MAX_MESSAGE')} bytes",
    "payloads of messages 2 and 3": f"{amount('MAX_AGENT_PAYLOAD')} and {amount('MAX_CONTROLLER_PAYLOAD')} bytes",
    "record": f"{amount('TAG')} to {amount('MAX_RECORD')} bytes, plaintext to {amount('RECORD_PLAINTEXT_MAX_BYTES')}",
    "records between rekeys, in one direction": amount("REKEY_AFTER_RECORDS"),
    "frame header": f"{amount('FRAME_HEADER_BYTES')} bytes",
    "frame body": f"{amount('FRAME_BODY_MAX_BYTES')} bytes",
    "session identifier": f"{amount('SESSION_ID_BYTES')} bytes",
    "ACK at the latest after": f"{amount('ACK_EVERY_FRAMES')} frames or {amount('ACK_EVERY_BYTES')} bytes",
    "ACK at the latest after, while no channel is open": f"{amount('ACK_IDLE_BYTES')} bytes",
    "initial window, each channel and direction": f"{amount('WINDOW_INITIAL_BYTES')} bytes",
    "nesting of a message": amount("MESSAGE_DEPTH_MAX"),
    "items of one array or map": amount("MESSAGE_ITEMS_MAX"),
    "digest": f"CRC-32, {amount('DIGEST')} bytes, over {amount('DIGEST_WHOLE_BYTES')} bytes"
    f" and every {amount('DIGEST_STRIDE')}th behind them",
    "certificate": f"{amount('CERTIFICATE_MAX_BYTES')} bytes",
    "advert": f"{advert.MAX_ADVERT_BYTES} bytes",
    "unacknowledged bytes that a sender must allow itself": f"{2 * _constants.ACK_EVERY_BYTES // 2**20} MiB",
    "channel identifier": "1 to 2^32 − 1",  # noqa: RUF001 - a minus sign, as the text has it
    # Bounds of fields: test_messages has an edge for each.
    "attempt": "1 to 2^32 − 1",  # noqa: RUF001
    "window in OPEN": f"{amount('WINDOW_INITIAL_BYTES')} to 2^64 − 1 bytes",  # noqa: RUF001
    "path": "4,096 bytes",
    "words of a command": "4,096",
    "variables": "1,024",
    "script": "64 MiB",
    "label of a command": "1,024 characters",
}

CHOSEN = {
    "unacknowledged bytes at which only SIGNAL, RESIZE and CANCEL are sent": mebibytes("RETAINED_MAX_BYTES"),
    "`channels`": amount("CHANNELS_MAX"),
    "window of a new channel that carries data": mebibytes("WINDOW_OPEN_BYTES"),
    "largest window": mebibytes("WINDOW_MAX_BYTES"),
    "window budget of a session, of an agent": ", ".join(
        map(mebibytes, ("SESSION_BUDGET_BYTES", "AGENT_BUDGET_BYTES"))
    ),
    "DATA body while other channels wait, else": (
        f"{amount('DATA_BODY_SHARED_BYTES')} bytes, {amount('DATA_BODY_BYTES')} bytes"
    ),
}


def settings_in_words():
    """What the agent chooses; its own package says so, as this one knows no clock."""
    settings = pytest.importorskip("pyinfra_agent._settings").Settings()
    idle, busy = settings.keepalive_seconds
    return {
        "time for the handshake": f"{settings.handshake_seconds:g} s",
        "`ttl`": f"{settings.session_ttl_seconds:g} s",
        "quiet time, and longest drain, after an exit": (
            f"{settings.drain.quiet_seconds * 1000:g} ms, {settings.drain.most_seconds:g} s"
        ),
        "keepalive idle, with a request outstanding": f"{idle:g} s, {busy:g} s",
        "intervals of silence until a link is lost": f"{settings.keepalive_missed}",
    }


def limits():
    """Return the two tables of section 13, each as its lines."""
    specified, chosen = section(13).split("Implementation choices")
    rows = re.compile(r"^\| (?!what|-)([^|]*) \| ([^|]*) \| [\d.]+ \|$", re.MULTILINE)
    return dict(rows.findall(specified)), dict(rows.findall(chosen))


@pytest.mark.parametrize("what", SPECIFIED)
def test_specified_limit_is_the_code_s(what):
    assert limits()[0][what] == SPECIFIED[what]


@pytest.mark.parametrize("what", CHOSEN)
def test_chosen_limit_is_the_code_s(what):
    assert limits()[1][what] == CHOSEN[what]


def test_no_other_limit_is_stated():
    settings = settings_in_words()
    specified, chosen = limits()
    assert specified.keys() == SPECIFIED.keys()
    assert chosen.keys() == CHOSEN.keys() | settings.keys()
    assert chosen.items() >= settings.items()


def test_limits_repeat_what_the_bounds_of_fields_are():
    """The lines above that no constant has a name for."""
    Exec.decode(Exec((b"",) * 4096, env={b"%d" % n: b"" for n in range(1024)}, cwd=b"/" * 4096).encode())
    Exec.decode(Exec((b"",), script_index=0, script_size=64 * 1024 * 1024).encode())
