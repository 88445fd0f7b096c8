"""What may stand after `@agent`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_agent_connector._names import (
    AgentName,
    BadAgentName,
    NameKind,
    parse_agent_name,
    parse_pin_name,
    pin_name,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, AgentName(NameKind.EVERY)),
        ("", AgentName(NameKind.EVERY)),
        ("known", AgentName(NameKind.KNOWN)),
        ("subnet", AgentName(NameKind.SUBNET)),
        ("Loopback", AgentName(NameKind.LOOPBACK)),
        ("known:7963", AgentName(NameKind.AGENT, "known", 7963)),
        ("web1", AgentName(NameKind.AGENT, "web1", 7963)),
        ("Web1.Example.COM:22", AgentName(NameKind.AGENT, "web1.example.com", 22)),
        ("web_1", AgentName(NameKind.AGENT, "web_1", 7963)),
        ("web1.", AgentName(NameKind.AGENT, "web1.", 7963)),
        ("192.0.2.1", AgentName(NameKind.AGENT, "192.0.2.1", 7963)),
        ("192.0.2.1:65535", AgentName(NameKind.AGENT, "192.0.2.1", 65535)),
        ("::1", AgentName(NameKind.AGENT, "::1", 7963)),
        ("2001:DB8:0::1", AgentName(NameKind.AGENT, "2001:db8::1", 7963)),
        ("[2001:db8::1]", AgentName(NameKind.AGENT, "2001:db8::1", 7963)),
        ("[2001:db8::1]:80", AgentName(NameKind.AGENT, "2001:db8::1", 80)),
        ("[fe80::1%Eth0]:80", AgentName(NameKind.AGENT, "fe80::1%Eth0", 80)),
        ("[::ffff:192.0.2.1]:80", AgentName(NameKind.AGENT, "192.0.2.1", 80)),
        ("dns:Example.com", AgentName(NameKind.ZONE, "example.com")),
        ("dns:example.com.", AgentName(NameKind.ZONE, "example.com")),
        ("dns:7963", AgentName(NameKind.AGENT, "dns", 7963)),
        ("10.0.0.0/24", AgentName(NameKind.NETWORK, "10.0.0.0/24")),
        ("10.0.0.0/255.255.255.0", AgentName(NameKind.NETWORK, "10.0.0.0/24")),
        ("2001:db8::/64", AgentName(NameKind.NETWORK, "2001:db8::/64")),
    ],
)
def test_parse_agent_name_tells_each_form_apart(text, expected):
    """Each documented form has one kind, and names and addresses become canonical."""
    assert parse_agent_name(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("web1", False),
        ("web1:7963", True),
        ("2001:db8::1", False),
        ("[2001:db8::1]", False),
        ("[2001:db8::1]:7963", True),
        ("known:7963", True),
    ],
)
def test_agent_name_tells_whether_it_says_the_port(text, says):
    """Also the usual one; with it and without it is the same agent."""
    assert parse_agent_name(text).has_port == says


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("web1:0", "from 1 to 65535"),
        ("web1:65536", "from 1 to 65535"),
        ("web1:", "from 1 to 65535"),
        ("web1:http", "from 1 to 65535"),
        ("web1:-1", "from 1 to 65535"),
        ("web1:²", "names are ASCII"),
        ("web1:" + "1" * 5000, "from 1 to 65535"),
        ("[::1]:", "from 1 to 65535"),
        ("[::1", "brackets"),
        ("[web1]:80", "brackets"),
        ("[]:80", "brackets"),
        ("[::1]80", ":PORT"),
        ("[fe80::1%e th]", "interface"),
        ("fe80::1%", "interface"),
        ("1:2:3", "not an IPv6 address"),
        ("10.1", "four numbers"),
        ("10.0.0.256", "four numbers"),
        ("010.0.0.1", "four numbers"),
        ("1234", "four numbers"),
        ("0x7f000001", "four numbers"),
        ("10.0.0.5/24", "10.0.0.0/24"),
        ("10.0.0.0/33", "ADDRESS/BITS"),
        ("web1/24", "ADDRESS/BITS"),
        ("ssh://web1", "ADDRESS/BITS"),
        ("/etc/passwd", "ADDRESS/BITS"),
        ("web1,web2", "commas"),
        ("root@web1", "user part"),
        ("bücher.example", "xn--"),
        ("-oProxyCommand", "HOST:PORT"),
        ("web1-", "HOST:PORT"),
        ("web 1", "HOST:PORT"),
        ("web1\n", "HOST:PORT"),
        ("web1\x1b[2J", "HOST:PORT"),
        ("a..b", "HOST:PORT"),
        (".", "HOST:PORT"),
        ("a" * 64, "HOST:PORT"),
        ("a." * 127 + "a", "HOST:PORT"),
        ("dns:", "dns:example.com"),
        ("dns:exa mple", "dns:example.com"),
    ],
)
def test_parse_agent_name_refuses_a_malformed_name_with_a_remedy(text, remedy):
    """A malformed name is a ValueError of one short printable line that says how it should look."""
    with pytest.raises(BadAgentName) as caught:
        parse_agent_name(text)
    assert isinstance(caught.value, ValueError)
    assert remedy in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@given(st.text(max_size=60) | st.text("0123456789abcdef:.[]%/-@, dns", max_size=40))
def test_parse_agent_name_answers_or_raises_bad_agent_name(text):
    """Any text has a meaning or a BadAgentName, and an agent's canonical name means the same agent."""
    try:
        name = parse_agent_name(text)
    except BadAgentName:
        return
    if name.kind is NameKind.AGENT:
        assert 1 <= name.port <= 65535
        canonical = pin_name(name.host, name.port)
        assert parse_pin_name(canonical) == canonical


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("Web1", "web1:80"),
        ("web1.", "web1:80"),
        ("192.0.2.1", "192.0.2.1:80"),
        ("2001:DB8::0:1", "[2001:db8::1]:80"),
        ("::ffff:192.0.2.1", "192.0.2.1:80"),
        ("known", "known:80"),
    ],
)
def test_pin_name_is_the_same_for_every_spelling(host, expected):
    """However a host is spelt, it is pinned under one name."""
    assert pin_name(host, 80) == expected


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_pin_name_refuses_a_port_out_of_bounds(port):
    """A port that TCP does not have is refused."""
    with pytest.raises(BadAgentName, match="from 1 to 65535"):
        pin_name("web1", port)


@pytest.mark.parametrize("text", ["", "known", "dns:example.com", "10.0.0.0/8"])
def test_parse_pin_name_refuses_what_names_no_single_agent(text):
    """Only one agent can be pinned, not a selector."""
    with pytest.raises(BadAgentName, match="HOST:PORT"):
        parse_pin_name(text)


@pytest.mark.parametrize("text", ["::1%\x1b[2J/24", "::%\x1b[2J/64", "fe80::%eth0/64", "wor\u212a", "\u212anown"])
def test_name_that_only_looks_like_another_is_refused_in_printable_text(text):
    """Found by fuzzing: an interface within a network, and letters that become others when lowered."""
    with pytest.raises(BadAgentName) as caught:
        parse_agent_name(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["::%.", "fe80::1%eth0."])
def test_interface_keeps_its_last_dot_when_it_is_pinned(text):
    """Found by fuzzing: a pin that could not be read back."""
    assert parse_pin_name(parse_pin_name(text)) == parse_pin_name(text)
    assert parse_pin_name(text).endswith(".]:7963")


def test_letter_that_becomes_another_when_lowered_is_not_pinned():
    with pytest.raises(BadAgentName):
        pin_name("wor\u212a", 7963)
