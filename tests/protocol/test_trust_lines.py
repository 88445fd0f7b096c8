"""The lines of trust files: one meaning each, or none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_agent_protocol import KeyFormatError
from pyinfra_agent_protocol.certificates import Authority, AuthorityKey, format_authority, inspect_certificate
from pyinfra_agent_protocol.keys import KeyPair, format_public, format_secret
from pyinfra_agent_protocol.trust_lines import (
    format_authority_line,
    parse_authority_line,
    parse_revocation,
    parse_revocations,
    split_options,
    split_values,
)

PUBLIC = AuthorityKey(bytes(range(32))).public
LINE = format_authority(PUBLIC, "fleet")
KEY = KeyPair.from_secret(bytes(range(32)))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("", {}),
        ("no-pty ", {"no-pty": None}),
        ('no-pty,from="10.0.0.0/8, ::1" ', {"no-pty": None, "from": "10.0.0.0/8, ::1"}),
        ('names="a" groups="b" ', {"names": "a", "groups": "b"}),
        ('names="a \\" b\\\\" ', {"names": 'a " b\\'}),
        ('names="pyinfra-agent-key" ', {"names": "pyinfra-agent-key"}),
    ],
)
def test_options_stand_in_front_of_a_key(options, found):
    assert split_options(f"{options}{LINE}") == (found, LINE)


@pytest.mark.parametrize(
    "line", ["", "no-pty", f'names="a {LINE}', f"no-pty no-pty {LINE}", f"=x {LINE}", f"NO-PTY {LINE}", "x" * 9000]
)
def test_options_that_are_none_are_refused(line):
    with pytest.raises(KeyFormatError):
        split_options(line)


@pytest.mark.parametrize("value", [None, "", ",", "a,", "a,,b", "a\x1b"])
def test_list_without_values_is_refused(value):
    with pytest.raises(KeyFormatError, match="takes a list"):
        split_values("names", value)


words = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters=","), min_size=1).map(
        str.lower
    ),
    min_size=1,
    max_size=4,
).filter(lambda texts: all(text.isprintable() and text == text.strip() == text.lower() for text in texts))


@given(st.none() | words, st.none() | words)
def test_authority_line_is_read_back(names, groups):
    authority = Authority(PUBLIC, "fleet", names and tuple(names), groups and tuple(groups))
    assert parse_authority_line(format_authority_line(authority)) == authority


@pytest.mark.parametrize("options", ['colour="red"', "names", 'names=""', "cert-authority"])
def test_authority_with_an_option_that_is_none_is_refused(options):
    with pytest.raises(KeyFormatError):
        parse_authority_line(f"{options} {LINE}")


def test_revocations_are_serials_and_keys():
    revoked = parse_revocations(f"# lost\n\n00000000000000ff web1\n{format_public(KEY.public, 'ci')}\n")
    assert revoked.serials == {255}
    assert revoked.keys == {KEY.public}


@pytest.mark.parametrize("line", ["", "ff", "00000000000000FF", "00000000000000fg", format_secret(KEY), LINE])
def test_revocation_that_is_none_is_refused(line):
    with pytest.raises(KeyFormatError) as caught:
        parse_revocation(line)
    assert format_secret(KEY).split()[1] not in str(caught.value)


def test_revocations_with_a_broken_line_are_none_at_all():
    """The line that cannot be read may be the one that matters; its number is told."""
    with pytest.raises(KeyFormatError, match="line 2"):
        parse_revocations("00000000000000ff\nff\n")


@pytest.mark.parametrize("data", [b"", bytes(80), bytes(2000), b"\x80" * 90])
def test_certificate_that_is_none_cannot_be_inspected(data):
    with pytest.raises(KeyFormatError):
        inspect_certificate(data)
