"""No clock that somebody can set decides anything: a stepped clock, NTP or a suspended laptop are harmless."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for part in ("protocol", "agent", "connector") for path in (ROOT / part).rglob("*.py"))

#: Clocks that follow the time of day (the `time` and `datetime` modules' documentation).
SETTABLE = {"time", "time_ns", "localtime", "gmtime", "ctime", "now", "utcnow", "today"}
#: The log shows the time of day to people; nothing reads it back. The cache says how long ago a host was seen.
FOR_PEOPLE = {"agent/pyinfra_agent/_log.py", "connector/pyinfra_agent_connector/_seen.py"}
FOR_PEOPLE |= {"agent/pyinfra_agent/_audit_command.py", "connector/pyinfra_agent_connector/discover_command.py"}
#: A date that people have set: until when a key or a certificate holds. SPEC section 16 forgives 300 seconds.
DATES = {"agent/pyinfra_agent/_authorized.py", "agent/pyinfra_agent/_watch.py"}
DATES |= {
    f"connector/pyinfra_agent_connector/{name}.py"
    for name in ("_authorities", "_fleet", "_identity", "ca_command", "enrolment")
}


def settable_clocks(source: str) -> list[int]:
    """Return the lines that read a clock which can be set."""
    tree = ast.parse(source)
    modules = {"time", "datetime", "date"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [node.lineno for name in node.names if name.name in SETTABLE]
        if isinstance(node, ast.Attribute) and node.attr in SETTABLE:
            value = node.value
            if (isinstance(value, ast.Name) and value.id in modules) or (
                isinstance(value, ast.Attribute) and value.attr in modules
            ):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("source", ["import time\ntime.time()", "from time import time", "datetime.datetime.now()"])
def test_settable_clock_is_noticed(source):
    assert settable_clocks(source)


def test_monotonic_clock_is_not_one():
    assert not settable_clocks("import time\ntime.monotonic()")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_source_reads_no_clock_that_can_be_set(path):
    if str(path.relative_to(ROOT)) in FOR_PEOPLE | DATES:
        assert settable_clocks(path.read_text())
    else:
        assert settable_clocks(path.read_text()) == []
