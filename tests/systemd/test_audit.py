"""What the journal of a machine keeps of those who were there, and how `pyinfra-agent audit` finds it."""

from __future__ import annotations

import json
import shutil

import pytest

from pyinfra_agent_protocol.keys import fingerprint, parse_public
from tests.e2e.helpers import PYINFRA
from tests.systemd.helpers import eventually

USER = "deploy"
PASSWORD = "the-password-of-deploy"
TOKEN = "a-token-that-is-hidden"
PRINTED = "what-the-command-prints"
#: The same with other words, so that the words of a script do not look like its output.
PRINT = "printf '%s-%s\\n' what-the command-prints"

DEPLOY = f"""
from pyinfra.api import HiddenValue
from pyinfra.operations import files, server

server.shell(
    name="as root",
    commands=["test \\"$TOKEN\\" = {TOKEN[:8]}'{TOKEN[8:]}' && {PRINT} && id -un > /root/did-it"],
    _sudo=True,
    _sudo_password={PASSWORD!r},
    _env={{"TOKEN": HiddenValue({TOKEN!r})}},
)
files.put(name="a file", src="page", dest="/tmp/page")
server.shell(name="fails", commands=["exit 7"], _ignore_errors=True)
"""


@pytest.fixture
def audited(service, tmp_path):
    """A service that a deploy has used as a user who needs a password for sudo; and somebody who is not let in."""
    for tool, package in (("sudo", "sudo"), ("journalctl", "systemd")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (package {package})")
    service.run("useradd", "--create-home", "--shell", "/bin/sh", USER, check=True)
    service.run("sh", "-c", f"echo {USER}:{PASSWORD} | chpasswd", check=True)
    rule = service.container.path("/etc/sudoers.d/deploy")
    rule.write_text(f"{USER} ALL=(ALL:ALL) ALL\n")
    rule.chmod(0o440)
    authorized = service.container.path("/var/lib/pyinfra-agent/authorized_controllers")
    authorized.write_text(f'user="{USER}" {service.identity()}\n')
    (tmp_path / "deploy.py").write_text(DEPLOY)
    (tmp_path / "page").write_bytes(b"12345")
    words = [PYINFRA, "-y", f"@agent/{service.address}", "deploy.py"]
    done = service.lab.run(*words, cwd=tmp_path, env=service._environment, seconds=60)
    assert done.status == 0, f"{done.stdout}{done.stderr}\n{service.journal}"
    assert service.container.path("/root/did-it").read_text() == "root\n"
    stranger = service._environment | {"PYINFRA_AGENT_HOME": str(tmp_path / "stranger")}
    refused = service.lab.run(
        PYINFRA, "-y", f"@agent/{service.address}", "exec", "--", "true", cwd=tmp_path, env=stranger
    )
    assert refused.status != 0
    eventually(lambda: "denied" in service.journal, 10, "the line about the stranger")
    return service


def audit(machine, *words):
    """Return what `pyinfra-agent audit --json` finds in the machine's own journal."""
    done = machine.agent("audit", "--json", *words)
    assert done.status == 0, done
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_journal_says_who_did_what_and_keeps_no_secret(audited):
    """Each value is a field of its own; `audit` filters by them; passwords, hidden values and output are nowhere."""
    # --- fields, as journald has them ---
    key = fingerprint(parse_public(audited.identity()).key)
    words = ("journalctl", "--quiet", "--output=json", "PYINFRA_AGENT_EVENT=request", f"PYINFRA_AGENT_KEY={key}")
    fields = [json.loads(line) for line in audited.run(*words, check=True).stdout.splitlines()]
    (put,) = [entry for entry in fields if entry["PYINFRA_AGENT_REQUEST"] == "put"]
    assert put["PYINFRA_AGENT_PATH"] == "/tmp/page"
    assert put["PYINFRA_AGENT_RECEIVED"] == "5"
    assert put["PYINFRA_AGENT_USER"] == USER
    assert put["PYINFRA_AGENT_PEER"].startswith("10.77.0.1:")
    assert put["SYSLOG_IDENTIFIER"] == "pyinfra-agent"
    assert put["_SYSTEMD_UNIT"] == "pyinfra-agent.service"
    assert put["MESSAGE"].startswith("request controller=")

    # --- audit ---
    requests = audit(audited, "--request", "exec")
    assert {entry["request"] for entry in requests} == {"exec"}
    (sudo,) = [entry for entry in requests if "did-it" in entry["what"]]
    assert (sudo["exit"], sudo["user"], sudo["key"]) == ("0", USER, key)
    assert "sudo" in sudo["what"]
    assert "TOKEN=" in sudo["what"]
    failed = audit(audited, "--failed")
    assert [entry["exit"] for entry in failed if "exit 7" in entry.get("what", "")] == ["7"]
    assert all(entry["event"] == "denied" or entry["exit"] != "0" for entry in failed)
    assert [entry["event"] for entry in failed if entry.get("key") != key] == ["denied"]
    assert {entry["key"] for entry in audit(audited, "--controller", key)} == {key}
    assert audit(audited, "--user", "nobody") == []
    assert audit(audited, "--since", "2999-01-01") == []
    everything = audit(audited)
    assert len(audit(audited, "--since", "1h")) == len(everything) > len(requests) > len(failed)
    for_people = audited.agent("audit", "--request", "put").stdout
    assert f" request controller={put['PYINFRA_AGENT_CONTROLLER']} key={key} peer=10.77.0.1:" in for_people
    assert f" request=put outcome=done path=/tmp/page user={USER} received=5 ms=" in for_people

    # --- what must not be there, nor anywhere else in the journal ---
    whole = audited.run("journalctl", "--output=json", "--all", check=True).stdout
    assert whole.count("pyinfra-agent") > len(everything)
    for secret in (PASSWORD, TOKEN, PRINTED):
        assert secret not in whole
