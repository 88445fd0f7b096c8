"""Reading the configuration anew: what counts at once, what waits for a restart, and what is refused."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import trio

from pyinfra_agent import _reload
from pyinfra_agent._config import parse_config
from pyinfra_agent._reload import Reloader, reload_on_signal


class Agent:
    """A configuration file, the agent that reads it, and what it runs with."""

    def __init__(self, text, **said_instead):
        self.text = text
        self.settings = replace(self.read(), **said_instead)
        self.reloader = Reloader(self.settings, self.read, self.use)

    def read(self):
        return parse_config(self.text, "agent.toml")

    def use(self, settings):
        self.settings = settings

    def reload(self, text):
        self.text = text
        return self.reloader.reload()


def test_changeable_key_counts_at_once():
    agent = Agent("grace = 1")
    assert agent.reload("grace = 2\nmax_commands = 5") == "configuration reloaded"
    assert (agent.settings.grace_seconds, agent.settings.commands_max) == (2, 5)


def test_key_that_is_taken_out_has_its_default_again():
    agent = Agent("grace = 1")
    agent.reload("")
    assert agent.settings.grace_seconds == 5


def test_fixed_key_is_named_until_it_is_taken_back(capsys):
    agent = Agent('listen = ":1"')
    for _ in range(2):
        said = agent.reload('listen = ":2"\ncgroups = "off"\ngrace = 2')
        assert said == "configuration reloaded; only a restart changes listen, cgroups"
    assert agent.settings.listen == ((None, 1),)
    assert agent.settings.grace_seconds == 2
    assert "restart-needed keys=listen,cgroups" in capsys.readouterr().err
    assert agent.reload('listen = ":1"') == "configuration reloaded"


def test_what_the_command_line_said_stays():
    """--listen beats the file, at a reload as at the start, and nobody is told to restart for it."""
    agent = Agent('listen = ":1"', listen=((None, 9),))
    assert agent.reload('listen = ":1"\ngrace = 2') == "configuration reloaded"
    assert agent.settings.listen == ((None, 9),)


def test_broken_file_changes_nothing_and_is_said(capsys):
    agent = Agent("grace = 1")
    assert agent.reload("grace = 2\nnicee = 3").startswith("configuration refused, the former one stays: agent.toml: ")
    assert agent.settings.grace_seconds == 1
    assert "configuration-refused" in capsys.readouterr().err


def test_limit_that_cannot_be_kept_is_refused(monkeypatch):
    monkeypatch.setattr(_reload, "why_not_limited", lambda settings: "max_tasks cannot be kept here")
    agent = Agent("")
    assert "max_tasks cannot be kept here" in agent.reload("max_tasks = 3\ngrace = 9")
    assert agent.settings.grace_seconds == 5


async def test_signal_reloads_and_the_manager_hears_both(monkeypatch):
    told = []
    heard = trio.Event()
    monkeypatch.setattr(_reload, "notify_reloading", lambda: told.append("reloading"))
    monkeypatch.setattr(_reload, "notify_ready", lambda status: (told.append(status), heard.set()))
    agent = Agent("")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reload_on_signal, agent.reloader, lambda: "no sessions")
        await trio.testing.wait_all_tasks_blocked()
        agent.text = "grace = 3"
        os.kill(os.getpid(), signal.SIGHUP)
        with trio.fail_after(5):
            await heard.wait()
        nursery.cancel_scope.cancel()
    assert told == ["reloading", "configuration reloaded; no sessions"]
    assert agent.settings.grace_seconds == 3


@pytest.mark.parametrize("name", sorted(_reload._CHANGEABLE))
def test_changeable_fields_exist(name):
    assert hasattr(Agent("").settings, name)
