"""SECURITY.md names a test for what it says, and each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHOWN_BY = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")

TEXT = (ROOT / "SECURITY.md").read_text()
# Behind how to report and what is trusted, and before how keys are changed.
THREATS = TEXT.partition("\n## Changing keys")[0].split("\n## ")[3:]


@pytest.mark.parametrize(("path", "name"), sorted(set(SHOWN_BY.findall(TEXT))), ids=lambda value: value)
def test_document_names_a_test_that_exists(path, name):
    source = (ROOT / path).read_text()

    assert re.search(rf"^(?:async )?def {name}\(", source, re.MULTILINE), f"{path} has no {name}"


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.partition("\n")[0])
def test_every_threat_has_a_test(threat):
    assert SHOWN_BY.search(threat)


def test_every_name_of_a_test_is_written_out():
    """A name in another form would not be looked for."""
    assert len(SHOWN_BY.findall(TEXT)) == TEXT.count("::")
