"""`systemctl reload`: what can change while the agent runs changes, and the rest is named."""

from __future__ import annotations

from tests.systemd.helpers import eventually

NICENESS = "print(output(connected(), 'sh', '-c', 'sleep 0.1; nice'))"


def test_reload_applies_what_can_change_and_names_what_cannot(service):
    before = service.pid
    service.configure('nice = 7\numask = "077"\nlisten = ":7964"\n')
    service.systemctl("reload", "pyinfra-agent")
    eventually(lambda: "configuration reloaded" in service.show("StatusText"), 5, "the reload")
    assert service.show("StatusText").startswith("configuration reloaded; only a restart changes listen; ")
    assert service.show("ActiveState") == "active"
    assert service.pid == before
    assert service.controller(NICENESS).stdout == "(0, '7\\n')\n"
    assert service.controller("print(output(connected(), 'sh', '-c', 'umask'))").stdout == "(0, '0077\\n')\n"
    assert "reloaded changed=umask,nice\n" in service.journal
    assert "restart-needed keys=listen " in service.journal


def test_reload_of_a_broken_file_fails_and_changes_nothing(service):
    service.configure("nice = 7\nnicee = 8\n")
    assert service.systemctl("reload", "pyinfra-agent", check=False).status == 1
    assert "there is no such key; is nice meant?" in service.journal
    assert service.controller(NICENESS).stdout == "(0, '0\\n')\n"


def test_signal_with_a_broken_file_changes_nothing(service):
    """SIGHUP by hand is not preceded by a check: the agent itself refuses."""
    service.configure("nicee = 8\n")
    service.systemctl("kill", "--kill-who=main", "--signal=HUP", "pyinfra-agent")
    eventually(lambda: service.show("StatusText").startswith("configuration refused"), 5, "the refusal")
    service.serves()
