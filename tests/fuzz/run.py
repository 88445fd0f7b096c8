"""Search for inputs that a fuzz target does not survive.

    python tests/fuzz/run.py [--seconds N] [--engine any|atheris|hypothesis] [TARGET ...]

With atheris (Linux on x86-64) the search is guided by the branches that an input reaches; without it inputs are
mutations of the corpus, drawn by Hypothesis. The time is split over the targets, one process each and one at a time.
Prints a line for each target; a finding is printed as a call to repeat, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fuzz.targets import Target

ROOT: Final = Path(__file__).parents[2]
CORPUS: Final = Path(__file__).parent / "corpus"
PACKAGES: Final = ["pyinfra_agent_protocol", "pyinfra_agent_connector"]

SECONDS: Final = 60
TIMEOUT_SECONDS: Final = 30  # of one input that never ends
STARTUP_SECONDS: Final = 60  # beside the search: imports, instrumentation, the corpus
MEMORY_MAX_MIB: Final = 1024
SHOWN_LINES: Final = 12  # of what a failing target printed, at the end
SHOWN_CHARACTERS: Final = 200  # of each
FINDING: Final = 77  # libFuzzer's exit status for an uncaught exception


def main() -> int:
    """Fuzz what the command line names."""
    sys.path[:0] = [str(ROOT)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"time for all targets (default: {SECONDS})")
    parser.add_argument("--engine", choices=["any", "atheris", "hypothesis"], default="any", help="default: any")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    options = parser.parse_args()
    engine = options.engine
    if engine == "any":
        engine = "atheris" if importlib.util.find_spec("atheris") else "hypothesis"
    if options.worker is not None:
        work(engine, options.targets[0], options.seconds, options.worker)

    names = options.targets or target_names()
    unknown = sorted(set(names) - {*target_names(), "self_test"})
    if unknown:
        parser.error(f"no target {', '.join(unknown)}: there are {', '.join(target_names())}")
    share = max(1.0, options.seconds / len(names))
    return max(int(fuzz(engine, name, share)) for name in names)


def target_names() -> list[str]:
    """Return the names of all targets."""
    return list(importlib.import_module("tests.fuzz.targets").TARGETS)


def fuzz(engine: str, name: str, seconds: float) -> bool:
    """Fuzz one target in a process of its own; print what came of it and tell whether that is a finding."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, __file__, "--engine", engine, "--seconds", f"{seconds:.0f}", "--worker", directory]
        started = time.monotonic()
        with subprocess.Popen(
            [*command, name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            try:
                output = process.communicate(timeout=seconds + TIMEOUT_SECONDS + STARTUP_SECONDS)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                output = process.communicate()[0]
        text = output.decode("utf-8", "replace")
        inputs = int(_last(r"^stat::number_of_executed_units: +(\d+)", text))
        edges = _last(r"\bcov: (\d+)", text)
        reached = f"{edges:>5} edges" if edges != "0" else "edges not measured"
        rate = inputs / max(time.monotonic() - started, 0.1)
        print(f"{name:18} {inputs:>8} inputs {rate:>7.0f}/s {reached}  {engine}", flush=True)
        if process.returncode == 0:
            return False
        failing = next(
            (path for kind in ("crash", "timeout", "oom") for path in Path(directory).glob(f"{kind}-*")), None
        )
        print(f"FINDING in {name}, exit status {process.returncode}:")
        print("\n".join(f"    {_shown(line)}" for line in _report(text).splitlines()[-SHOWN_LINES:]))
        if failing is not None:
            print(f"    fuzz_{name}(bytes.fromhex({failing.read_bytes().hex()!r}))", flush=True)
        return True


def work(engine: str, name: str, seconds: float, directory: Path) -> NoReturn:
    """Search in this process; it ends with the search."""
    if engine == "atheris":
        with_atheris(name, seconds, directory)
    else:
        with_hypothesis(name, seconds, directory)
    sys.exit(0)


def with_atheris(name: str, seconds: float, directory: Path) -> None:
    """Let libFuzzer search, guided by the branches of our packages."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=PACKAGES):
        test, length = load(name)
    (directory / "found").mkdir()
    seeds = CORPUS / name
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds:.0f}",
            f"-max_len={length}",
            f"-timeout={TIMEOUT_SECONDS}",
            f"-rss_limit_mb={MEMORY_MAX_MIB}",
            f"-artifact_prefix={directory}/",
            "-print_final_stats=1",
            str(directory / "found"),
            *([str(seeds)] if seeds.is_dir() else []),
        ],
        test,
    )
    atheris.Fuzz()


def with_hypothesis(name: str, seconds: float, directory: Path) -> None:
    """Draw mutations of the corpus; a failing input is made as small as Hypothesis can."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    test, length = load(name)
    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))] or [b""]
    pieces = st.one_of(st.binary(max_size=64), st.sampled_from(kept))
    inputs = st.one_of(
        st.binary(max_size=256), st.builds(_spliced, st.sampled_from(kept), pieces, st.integers(0, 4096))
    )
    count, last = 0, b""

    def check(data: bytes) -> None:
        nonlocal count, last
        count, last = count + 1, data[:length]
        test(last)

    deadline, round_number = time.monotonic() + seconds, 0
    try:
        while time.monotonic() < deadline:
            round_number += 1
            limits = settings(
                max_examples=200,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            )
            seeded(round_number)(limits(given(inputs)(check)))()
    except BaseException:
        traceback.print_exc()
        (directory / "crash-hypothesis").write_bytes(last)
        sys.exit(FINDING)
    finally:
        print(f"stat::number_of_executed_units: {count}", flush=True)


def load(name: str) -> tuple[Callable[[bytes], None], int]:
    """Return a target with its bounds, and how long its inputs are at most."""
    targets = importlib.import_module("tests.fuzz.targets")
    target: Target = self_test if name == "self_test" else targets.TARGETS[name]
    return lambda data: targets.run_bounded(target, data), targets.INPUT_MAX_BYTES


def self_test(data: bytes) -> None:
    """Fail on inputs that begin with one certain byte: shows that a finding is reported."""
    assert not data.startswith(b"\x42"), "the runner works"


def _spliced(data: bytes, piece: bytes, position: int) -> bytes:
    at = position % (len(data) + 1)
    return data[:at] + piece + data[at + len(piece) * (position // 2048) :]


def _report(text: str) -> str:
    """Cut what a failing worker printed down to the traceback, if there is one."""
    traced = text.partition("Uncaught Python exception: ===")[2].partition("\n==")[0]
    return traced.strip("\n") or text.partition("stat::")[0].strip("\n")


def _shown(line: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in line[:SHOWN_CHARACTERS])


def _last(pattern: str, text: str) -> str:
    found = re.findall(pattern, text, re.MULTILINE)
    return found[-1] if found else "0"


if __name__ == "__main__":
    sys.exit(main())
