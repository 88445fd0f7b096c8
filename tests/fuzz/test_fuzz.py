"""Each fuzz target over its corpus and over mutations of it, the same ones in every run; `run.py` searches further."""

from __future__ import annotations

import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.fuzz.make_corpus import CORPUS, seeds
from tests.fuzz.targets import INPUT_MAX_BYTES, TARGETS, run_bounded

MUTATIONS = 1500
RUN = Path(__file__).with_name("run.py")

targets = pytest.mark.parametrize("name", TARGETS)


def corpus(name):
    """Return the inputs of one target that are kept, by their path below the corpus."""
    return {str(path.relative_to(CORPUS)): path.read_bytes() for path in sorted((CORPUS / name).iterdir())}


def mutated(inputs, chance):
    """Return one of *inputs* after a few edits, or bytes at random."""
    if not chance.randrange(8):
        return chance.randbytes(chance.randrange(200))
    data = bytearray(chance.choice(inputs))
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(data) + 1)
        edit = chance.randrange(4)
        if edit == 0:
            data[at : at + 1] = chance.randbytes(1)
        elif edit == 1:
            data[at:at] = chance.randbytes(chance.randrange(1, 60))
        elif edit == 2:
            del data[at : at + chance.randrange(1, 30)]
        else:
            data[at:at] = chance.choice(inputs)
    return bytes(data[:INPUT_MAX_BYTES])


def run_showing_input(name, data):
    try:
        run_bounded(TARGETS[name], data)
    except Exception as error:
        raise AssertionError(f"fuzz_{name}(bytes.fromhex({data.hex()!r})) fails") from error


@targets
def test_target_takes_its_corpus(name):
    """Valid inputs, and those that once failed, end as documented."""
    inputs = corpus(name)
    assert inputs
    for data in inputs.values():
        run_showing_input(name, data)


@targets
def test_target_takes_mutations_of_its_corpus(name):
    """Inputs that are nearly valid end as documented."""
    chance = random.Random(zlib.crc32(name.encode()))
    inputs = list(corpus(name).values())
    for _ in range(MUTATIONS):
        run_showing_input(name, mutated(inputs, chance))


def test_corpus_is_what_the_encoders_write():
    """A seed of an older wire format would be refused at its first byte, and a fuzzer would learn nothing from it."""
    kept = {path: data for name in TARGETS for path, data in corpus(name).items() if "/regression-" not in path}
    assert kept == seeds(), "run `python tests/fuzz/make_corpus.py`"


@pytest.mark.parametrize("engine", ["any", "hypothesis"])
def test_runner_reports_failing_input(engine, tmp_path):
    """A target that fails ends the run with status 1 and the input as hex."""
    command = [sys.executable, str(RUN), "--seconds", "2", "--engine", engine, "self_test"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    [line] = [line for line in done.stdout.splitlines() if "fuzz_self_test(bytes.fromhex(" in line]
    data = bytes.fromhex(line.split("'")[1])
    assert data.startswith(b"\x42")


def test_runner_is_content_with_sound_target(tmp_path):
    """A target without findings is reported in one line."""
    command = [sys.executable, str(RUN), "--seconds", "2", "frames"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["frames"]
