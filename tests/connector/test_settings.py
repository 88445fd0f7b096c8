"""Host data, read the same for every pyinfra."""

from __future__ import annotations

import pytest

from pyinfra_agent_connector._errors import AgentError
from pyinfra_agent_connector._settings import DATA_KEYS, DEFAULT_PORT, Settings
from pyinfra_agent_protocol import DEFAULT_PORT as PROTOCOL_PORT


def test_settings_have_the_port_of_the_protocol():
    """It is written twice, so that pyinfra need not load the protocol for hosts that have no agent."""
    assert DEFAULT_PORT == PROTOCOL_PORT


def test_settings_fill_in_what_nobody_set():
    settings = Settings.read({}.get)
    assert (settings.host, settings.port, settings.home) == ("", PROTOCOL_PORT, None)
    assert (settings.connect_seconds, settings.resume_seconds) == (10.0, 60.0)
    assert settings.public_key is None


def test_settings_are_those_of_the_host():
    data = {
        "agent_host": "10.0.0.2",
        "agent_port": "7964",
        "agent_public_key": "a key line",
        "agent_trust": "strict",
        "agent_connect_timeout": 2,
        "agent_resume_timeout": "0.5",
        "agent_home": "/keys",
    }
    assert set(data) <= set(DATA_KEYS)
    assert Settings.read(data.get) == Settings("10.0.0.2", 7964, "a key line", "strict", 2.0, 0.5, "/keys")


@pytest.mark.parametrize("name", ["agent_port", "agent_connect_timeout", "agent_resume_timeout"])
@pytest.mark.parametrize("value", ["soon", "", [1], "1e"])
def test_settings_that_are_no_numbers_are_refused_by_name(name, value):
    with pytest.raises(AgentError) as caught:
        Settings.read({name: value}.get)
    assert str(caught.value) == f"host data {name} is {value!r}: give a number"
