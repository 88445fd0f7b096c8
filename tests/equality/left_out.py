"""Operations that neither `operations.py` nor `operations_stubbed.py` runs, and why."""

from __future__ import annotations

from typing import Final

LEFT_OUT: Final = {
    "server.reboot": "@local would take down its own pyinfra; tests/systemd/test_reboot.py reboots by @agent",
}
