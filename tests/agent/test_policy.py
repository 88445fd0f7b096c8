"""What a line's options say, and which requests each of them forbids."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from pyinfra_agent._policy import Policy
from pyinfra_agent_protocol import CloseSession, Exec, Get, Info, KeyFormatError, PtySize, Put, Stat
from pyinfra_agent_protocol.trust_lines import split_options

REQUESTS = {
    "exec": Exec((b"true",)),
    "exec with pty": Exec((b"true",), pty=PtySize()),
    "put": Put(b"/f"),
    "put through argv": Put(b"/f", argv=(b"tee",)),
    "get": Get(b"/f"),
    "get through argv": Get(b"/f", argv=(b"cat",)),
    "stat": Stat(b"/f"),
    "info": Info(),
    "close": CloseSession(),
}
#: What each option forbids; everything else it allows.
FORBIDDEN = {
    "no-exec": {"exec", "exec with pty", "put through argv", "get through argv"},
    "no-pty": {"exec with pty"},
    "no-put": {"put", "put through argv"},
    "no-get": {"get", "get through argv", "stat"},
    "user=nobody": set(),
    "from=192.0.2.0/24": set(),
    "expires=2099-01-01": set(),
    "no-exec,no-put,no-get": set(REQUESTS) - {"info", "close"},
}


def policy(text):
    return Policy.parse(split_options(f"{text} pyinfra-agent-key x")[0])


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("options", FORBIDDEN)
def test_option_forbids_these_requests_and_no_other(options, request_name):
    refusal = policy(options).refusal(REQUESTS[request_name])
    assert (refusal is not None) == (request_name in FORBIDDEN[options])
    if refusal is not None:
        assert refusal in options


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        ("192.0.2.7:40000", True),
        ("192.0.3.7:40000", False),
        ("[::ffff:192.0.2.7]:40000", True),
        ("[2001:db8::9]:1", True),
        ("[2001:db9::9]:1", False),
        ("[2001:db8::9%eth0]:1", True),
        ("203.0.113.5:1", True),
        ("nonsense", False),
        ("", False),
    ],
)
def test_source_has_to_be_in_one_of_the_networks(peer, allowed):
    assert policy('from="192.0.2.0/24,2001:db8::/32,203.0.113.5"').allows_source(peer) is allowed


def test_source_does_not_matter_without_from():
    assert Policy().allows_source("nonsense")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=timezone.utc)),
        ("2027-01-31T12:30", datetime(2027, 1, 31, 12, 30, tzinfo=timezone.utc)),
        ("2027-01-31T12:30:15Z", datetime(2027, 1, 31, 12, 30, 15, tzinfo=timezone.utc)),
        ("2027-01-31T12:30:00+02:00", datetime(2027, 1, 31, 10, 30, tzinfo=timezone.utc)),
    ],
)
def test_time_is_utc_unless_it_says_otherwise(text, moment):
    assert policy(f"expires={text}").expires == moment.timestamp()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("no-fun", "there is no option no-fun"),
        ("no-pty=yes", "takes no value"),
        ("user", "takes a value"),
        ("user=-x", "name of an account"),
        ('user="a b"', "name of an account"),
        ('user=""', "name of an account"),
        ("from=10.0.0.1/8", "networks"),
        ("from=web1", "networks"),
        ('from="10.0.0.0/8,"', "takes a list"),
        ("expires=tomorrow", "date"),
        ("expires=2027-02-30", "date"),
        ('expires="2027-01-31T10:00+01:00Z"', "date"),
        ("expires=99999-01-01", "date"),
    ],
)
def test_option_that_means_nothing_is_refused(options, complaint):
    with pytest.raises(KeyFormatError, match=complaint):
        policy(options)


@pytest.mark.parametrize(
    "text",
    [
        "",
        'from="192.0.2.0/24,2001:db8::/32"',
        'user="deploy",expires=2027-01-31,no-exec,no-put,no-get,no-pty',
        "expires=2027-01-31T12:30:15",
    ],
)
def test_policy_written_and_read_is_the_same(text):
    assert policy(text).format() == text
    assert policy(policy(text).format()) == policy(text)


@pytest.mark.parametrize(
    ("new", "old", "narrower"),
    [
        ("", "", False),
        ("no-pty", "", True),
        ("", "no-pty", False),
        ("no-pty", "no-pty", False),
        ("no-exec", "no-pty", True),
        ("user=a", "", True),
        ("", "user=a", True),
        ("user=b", "user=a", True),
        ("user=a", "user=a,no-get", False),
    ],
)
def test_policy_is_narrower_if_something_begun_could_be_forbidden_now(new, old, narrower):
    assert policy(new).is_narrower_than(policy(old)) is narrower
