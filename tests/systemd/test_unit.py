"""The unit files themselves, as `install` would write them here."""

from __future__ import annotations

import re
import subprocess

import pytest

from pyinfra_agent._units import unit_files
from tests.containers import containers_or_skip
from tests.systemd.helpers import CHECKOUT

#: What a command would inherit and could not undo (systemd.exec(5)); each has its reason in the unit.
INHERITED = (
    "NoNewPrivileges RestrictSUIDSGID CapabilityBoundingSet AmbientCapabilities SecureBits SystemCallFilter"
    " SystemCallArchitectures RestrictAddressFamilies RestrictNamespaces RestrictRealtime LockPersonality"
    " MemoryDenyWriteExecute ProtectClock ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectSystem"
    " ProtectHome PrivateTmp PrivateMounts PrivateDevices ProtectKernelTunables ProtectControlGroups ProtectProc"
    " ProcSubset ReadOnlyPaths InaccessiblePaths TemporaryFileSystem NoExecPaths RootDirectory PrivateNetwork"
    " PrivateUsers PrivateIPC IPAddressDeny DevicePolicy LimitNOFILE LimitNPROC LimitCORE MemoryMax MemoryHigh"
    " DynamicUser UMask Nice"
)


def version():
    return int(
        re.match(
            r"systemd (\d+)",
            subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=True).stdout,
        )[1]
    )


@pytest.fixture
def written(tmp_path):
    """The files, in a directory."""
    containers_or_skip()
    for name, text in unit_files(version(), with_socket=True).items():
        (tmp_path / name).write_text(text)
    return tmp_path


def analyze(*words):
    return subprocess.run(
        ["systemd-analyze", *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )


def test_units_are_verified_without_a_word(written):
    done = analyze("verify", *written.iterdir())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_exposure_is_the_one_that_is_known(written):
    """Everything that would lower the score is something that commands would inherit."""
    done = analyze("security", "--offline=true", "--threshold=100", written / "pyinfra-agent.service")
    assert "exposure level for pyinfra-agent.service: 9.6 " in done.stdout


@pytest.mark.parametrize("directive", INHERITED.split())
def test_directive_that_commands_inherit_is_absent_with_its_reason(directive):
    text = (CHECKOUT / "systemd/pyinfra-agent.service").read_text()
    assert not re.search(rf"^{directive}=", text, re.MULTILINE)
    assert re.search(rf"^#.*\b{directive}=", text, re.MULTILINE), "there is no reason"
