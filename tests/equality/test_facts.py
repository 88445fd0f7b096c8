"""Every fact that pyinfra has gives through @agent what it gives through @local: value, exit status, and each byte."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.equality.facts import ARGUMENTS, EMPTY, FAILS, MOVING, OTHER_STDERR, PLACE, facts, readings, title

HERE = Path(__file__).parent
READ_SECONDS = 120
FEWEST_READINGS = 250
"""Not empty; one that falls short means that the stubs and what the facts parse have parted."""
FEWEST_OUTPUTS = 260
"""Compared byte for byte, and not empty."""

TITLES = [title(name, arguments) for name, _, arguments in readings()]


@pytest.fixture(scope="module")
def answers(lab):
    """What `read_facts.py` found in a container, by the title of the reading."""
    [container] = lab.boot("facts")
    container.run("sh", HERE / "facts_setup.sh", PLACE, check=True)
    environment = {
        "PATH": f"{HERE / 'stubs'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": f"{PLACE}/home",
        "USER": "root",
        "LANG": "C.UTF-8",
        "TMPDIR": f"{PLACE}/empty",
        "PYTHONPATH": str(HERE.parents[1]),
    }
    done = container.run(sys.executable, HERE / "read_facts.py", env=environment, seconds=READ_SECONDS)
    assert done.status == 0, done.stderr
    return {title(answer["name"], answer["arguments"]): answer for answer in json.loads(done.stdout)}


def _all(runs, key):
    return [run[key] for run in runs]


@pytest.mark.parametrize("reading", TITLES)
def test_fact_is_the_same_through_agent_and_local(reading, answers):
    local, agent = answers[reading]["local"], answers[reading]["agent"]
    local_runs, agent_runs = local["runs"], agent["runs"]

    assert agent["error"] is None
    assert local["error"] is None
    assert agent["kept"] == local["kept"]
    assert agent["is_empty"] == local["is_empty"]
    assert _all(agent_runs, "status") == _all(local_runs, "status")
    assert any(_all(agent_runs, "status")) == (reading in FAILS)
    if answers[reading]["name"] not in MOVING:
        assert agent["value"] == local["value"]
        assert _all(agent_runs, "stdout") == _all(local_runs, "stdout")
        assert [lines[0] for lines in _all(agent_runs, "lines")] == [lines[0] for lines in _all(local_runs, "lines")]
        if reading not in OTHER_STDERR:
            assert _all(agent_runs, "stderr") == _all(local_runs, "stderr")
            assert _all(agent_runs, "lines") == _all(local_runs, "lines")


def test_every_fact_is_read_and_gives_something(answers, capsys):
    """Equal because both are empty would prove little."""
    names = {name for name, _ in facts()}
    full = [answer for answer in answers.values() if not answer["agent"]["is_empty"]]
    runs = [run for answer in answers.values() if answer["name"] not in MOVING for run in answer["local"]["runs"]]
    outputs = [run["stdout"] for run in runs if run["stdout"]]
    errors = [run["stderr"] for run in runs if run["stderr"]]
    with capsys.disabled():
        print(f"\n{len(names)} facts, {len(answers)} readings, {len(full)} of them not empty")
        print(
            f"{len(runs)} commands compared byte for byte: {len(outputs)} wrote to stdout, {len(errors)} to stderr, "
            f"{sum(map(len, outputs + errors)):,} bytes"
        )

    assert {answer["name"] for answer in answers.values()} == names
    assert names - {answer["name"] for answer in full} == set(EMPTY)
    assert len(full) >= FEWEST_READINGS
    assert len(outputs) >= FEWEST_OUTPUTS
    assert errors


def test_tables_name_only_what_there_is():
    names = {name for name, _ in facts()}

    assert set(ARGUMENTS) | set(MOVING) | set(EMPTY) <= names
    assert FAILS | set(OTHER_STDERR) <= set(TITLES)
    assert len(TITLES) == len(set(TITLES))
