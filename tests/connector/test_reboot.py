"""After pyinfra's reboot a host is connected to again when its machine has rebooted, and not before."""

from __future__ import annotations

import pytest
from pyinfra.api import StringCommand
from pyinfra.api.exceptions import ConnectError

from pyinfra_agent_protocol import CloseSession, CloseSessionResult, Exec, ExecResult, Info, InfoResult
from tests.connector.helpers import FakeAgent, state_of

IN_BACKGROUND = "( sleep 1 && reboot ) </dev/null >/dev/null 2>&1 &"


def boot(name, *, status=0, refusal="denied"):
    """Return the script of an agent in the boot *name*; a command ends with *status*, or the connection for None.

    For None as the name it refuses to tell it.
    """

    def serve(conversation):
        conversation.open()
        while True:
            asked = conversation.request()
            if isinstance(asked.request, Info):
                if name is None:
                    conversation.session.send_refusal(asked.channel, refusal, "nobody is told")
                    conversation.flush()
                else:
                    conversation.answer(asked.channel, InfoResult({"boot_id": name}))
            elif isinstance(asked.request, CloseSession):
                conversation.answer(asked.channel, CloseSessionResult())
            else:
                assert isinstance(asked.request, Exec)
                if status is None:
                    return
                conversation.answer(asked.channel, ExecResult(status))

    return serve


def connected(agent):
    host = state_of(("@agent/web1", {"agent_host": "127.0.0.1", "agent_port": agent.port})).inventory.get_host(
        "@agent/web1"
    )
    host.connect(raise_exceptions=True)
    return host


def reboot(host, command="reboot"):
    return host.run_shell_command(StringCommand(command), _success_exit_codes=[0, -1])[0]


def connect_anew(host):
    host.disconnect()
    host.connect(raise_exceptions=True)


@pytest.mark.parametrize(("command", "status"), [("reboot", None), ("reboot", 0), (IN_BACKGROUND, 0)])
def test_same_boot_is_refused_and_the_next_is_not(command, status):
    """However the command ended; and afterwards there is nothing to wait for."""
    with FakeAgent(boot("a", status=status), boot("a"), boot("a"), boot("b"), boot("a")) as agent:
        host = connected(agent)
        assert reboot(host, command)
        for _ in range(2):
            with pytest.raises(ConnectError, match="has not rebooted yet"):
                connect_anew(host)
        connect_anew(host)
        connect_anew(host)
        host.disconnect()


@pytest.mark.parametrize("name", [None, "", 7])
def test_agent_that_does_not_tell_its_boot_is_believed(name):
    with FakeAgent(boot(name)) as agent:
        host = connected(agent)
        assert reboot(host)
        connect_anew(host)
        host.disconnect()


def test_agent_that_is_stopping_is_still_in_the_last_boot():
    """It is stopped a while after the command for the reboot has ended."""
    with FakeAgent(boot("a"), boot(None, refusal="stopping"), boot("b")) as agent:
        host = connected(agent)
        assert reboot(host)
        with pytest.raises(ConnectError, match="nobody is told"):
            connect_anew(host)
        connect_anew(host)
        host.disconnect()


def test_reboot_that_failed_is_not_waited_for():
    with FakeAgent(boot("a", status=1)) as agent:
        host = connected(agent)
        assert not reboot(host)
        connect_anew(host)
        host.disconnect()


def test_other_commands_ask_for_no_boot():
    """They cost no round trip more, and what they end comes back as it was."""
    with FakeAgent(boot("a")) as agent:
        host = connected(agent)
        assert reboot(host, "systemctl restart network")
        connect_anew(host)
        host.disconnect()
    asked = [type(event.request) for talk in agent.conversations for event in talk.events if hasattr(event, "request")]
    assert asked == [Exec, CloseSession, CloseSession]
