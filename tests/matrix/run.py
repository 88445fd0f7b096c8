"""Every supported pyinfra on every supported Python, each in a virtual environment of its own: `make matrix`.

    python tests/matrix/run.py                               all cells
    python tests/matrix/run.py --pyinfra 1.7.3 --python 3.13 one cell
    python tests/matrix/run.py --container                   a deploy against an agent in a container, too

A cell gets the wheel of this checkout with its extras, one pyinfra, and nothing else; then `cell.py` says what holds
there.  Environments are kept in a directory (`--cache`) and used again.  It needs the network, to install.

Python interpreters are looked for on PATH, and where pyenv keeps them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
sys.path.insert(0, str(CHECKOUT))

#: What pip is asked for: the oldest and the newest of each generation, and those that tests are written for.
REQUIREMENTS = ("1.7", "1.7.3", "2.0", "2.9.2", "3.0", "3.10", ">=3,<4")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")

INSTALL_SECONDS = 600
CHECK_SECONDS = 300


class NotInstallable(Exception):
    """A cell cannot be made; the text says why."""


@dataclass
class Result:
    """What became of one cell."""

    name: str
    version: str = ""
    interpreter: Path | None = None
    checks: list[dict] = field(default_factory=list)
    trouble: str = ""

    @property
    def failures(self) -> list[dict]:
        return [check for check in self.checks if check["error"]]

    def __str__(self) -> str:
        if self.trouble:
            return f"{self.name}: {self.trouble}"
        left_out = [f"{c['check']}: {c['note']}" for c in self.checks if isinstance(c["note"], str)]
        text = f"{self.name}: {len(self.checks) - len(self.failures)} of {len(self.checks)} checks hold"
        text += f" ({'; '.join(left_out)})" if left_out else ""
        return "\n".join([text, *(f"    {check['check']}\n{check['error']}" for check in self.failures)])


def build_wheel(directory: Path) -> Path:
    """Build this checkout's wheel, without the network."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(CHECKOUT)]
    subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_SECONDS)
    (wheel,) = directory.glob("*.whl")
    return wheel


def requirement(pyinfra: str) -> list[str]:
    """Return what pip installs for *pyinfra*, a version or a specifier."""
    specifier = pyinfra if pyinfra[0] in "<>=~" else f"=={pyinfra}"
    # pkg_resources, by which pyinfra 1 and 2 find connectors, went out of setuptools 81; before 80 it does not find
    # distributions with a dot in their name, such as gevent's zope.interface.
    old = pyinfra[0] in "12"
    return [f"pyinfra{specifier}", *(["setuptools>=80,<81"] if old else [])]


def make_cell(directory: Path, python: str, pyinfra: str, wheel: Path) -> Path:
    """Return the interpreter of an environment with *pyinfra* and *wheel*; make it if there is none.

    Raises:
        NotInstallable: with pip's last word.
    """
    interpreter = directory / "bin" / "python"
    ready = directory / "ready"
    wanted = [*requirement(pyinfra), f"pyinfra-agentd[agent,connector] @ {wheel.as_uri()}"]
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "--disable-pip-version-check", "-q", "install"]
    if not ready.exists():
        shutil.rmtree(directory, ignore_errors=True)
        _run([python, "-m", "venv", "--without-pip", str(directory)])
        _run([*pip, *wanted])
        ready.touch()
    else:
        _run([*pip, "--no-deps", "--force-reinstall", str(wheel)])
    return interpreter


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["it failed without a word"]
        raise NotInstallable(f"cannot be installed: {errors[-1].strip()}")


def run_cell(interpreter: Path, *arguments: str, prefix: Sequence[str] = (), **variables: str) -> list[dict]:
    """Return the results of `cell.py`.

    Args:
        interpreter: of the cell.
        arguments: names of checks; none for all.
        prefix: in front of the command.
        variables: of the environment.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYINFRA_AGENT_", "PYTHON"))}
    done = subprocess.run(
        [*prefix, str(interpreter), "-W", "ignore", str(HERE / "cell.py"), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CHECK_SECONDS,
        check=False,
        cwd=tempfile.gettempdir(),  # not the checkout: the wheel is what is tested
        env={**kept, **variables},
    )
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    if not results:
        results = [{"check": "start", "error": done.stdout + done.stderr, "note": None, "seconds": 0.0}]
    return results


def version_of(interpreter: Path) -> str:
    """Return the version of pyinfra that the environment has."""
    program = "from importlib.metadata import version; print(version('pyinfra'))"
    return subprocess.run([interpreter, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def find_python(version: str) -> str | None:
    """Return an interpreter of this version."""
    if found := shutil.which(f"python{version}"):
        works = subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0
        if works:  # pyenv's shims are there for versions that it does not use
            return found
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    for directory in sorted(root.glob(f"{version}.*"), reverse=True):
        if (directory / "bin" / "python").exists():
            return str(directory / "bin" / "python")
    return None


def make_and_run(directory: Path, python: str, pyinfra: str, wheel: Path, checks: Sequence[str] = ()) -> Result:
    """Make one cell, and run *checks*, or all, in it."""
    result = Result(f"pyinfra {pyinfra}")
    try:
        result.interpreter = make_cell(directory, python, pyinfra, wheel)
        result.version = version_of(result.interpreter)
        result.name = f"pyinfra {result.version}"
        result.checks = run_cell(result.interpreter, *checks)
    except NotInstallable as error:
        result.trouble = str(error)
    except subprocess.TimeoutExpired:
        result.trouble = f"did not end within {CHECK_SECONDS} s"
    return result


def run_matrix(pythons: Sequence[str], requirements: Sequence[str], cache: Path, checks: Sequence[str]) -> list[Result]:
    """Run all cells, saying each result when it is there."""
    results = []
    with tempfile.TemporaryDirectory() as directory:
        wheel = build_wheel(Path(directory))
        for version in pythons:
            python = find_python(version)
            if python is None:
                results.append(say(Result(f"Python {version}", trouble="is not installed here")))
                continue
            seen = set()
            for pyinfra in requirements:
                name = re.sub(r"[^0-9.]+", "-", f"{version}-{pyinfra}").strip("-")
                result = make_and_run(cache / name, python, pyinfra, wheel, checks)
                if result.version in seen:
                    continue  # the newest is one of those that are named
                seen.add(result.version)
                result.name = f"{result.name} on Python {version}"
                results.append(say(result))
    return results


def run_in_container(cells: Sequence[Result]) -> list[Result]:
    """Run the deploy with each of *cells* against one agent in a container."""
    from tests.containers import Lab

    results = []
    with tempfile.TemporaryDirectory() as home, Lab() as lab:
        (machine,) = lab.boot("matrix")
        environment = {"PYINFRA_AGENT_HOME": home}
        agent = [sys.executable, "-m", "pyinfra_agent"]
        identity = subprocess.run(
            [*agent, "identity"], env={**os.environ, **environment}, capture_output=True, text=True, check=True
        )
        state = ["--state-dir", "/root/agent"]
        machine.run(*agent, "authorize", *state, identity.stdout.strip(), check=True)
        log = Path(home, "agent.log")
        with log.open("w") as stderr, machine.popen(*agent, "serve", *state, stderr=stderr) as serving:
            while "listening" not in log.read_text():
                assert serving.poll() is None, log.read_text()
                time.sleep(0.1)
            for cell in cells:
                assert cell.interpreter is not None
                result = Result(f"{cell.name}, to a container")
                result.checks = run_cell(
                    cell.interpreter,
                    "command",
                    prefix=lab.in_lab([]),
                    MATRIX_INVENTORY=f"@agent/{machine.address}",
                    **environment,
                )
                results.append(say(result))
            serving.kill()
    return results


def say(result: Result) -> Result:
    """Print *result* and return it."""
    print(result, flush=True)
    return result


def main(arguments: list[str]) -> int:
    """Run what is asked for; return 1 if anything failed."""
    parser = argparse.ArgumentParser(description="Run the connector with every supported pyinfra and Python.")
    parser.add_argument("--python", action="append", metavar="VERSION", help=f"default: {', '.join(PYTHONS)}")
    parser.add_argument("--pyinfra", action="append", metavar="VERSION", help=f"default: {', '.join(REQUIREMENTS)}")
    parser.add_argument("--cache", type=Path, default=CHECKOUT / ".matrix", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--container", action="store_true", help="deploy to an agent in a container, too (as root)")
    parser.add_argument("check", nargs="*", help="names of checks; default: all")
    options = parser.parse_args(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    results = run_matrix(
        options.python or PYTHONS, options.pyinfra or REQUIREMENTS, options.cache.resolve(), options.check
    )
    if options.container:
        results += run_in_container([result for result in results if result.interpreter is not None])
    failed = [result for result in results if result.failures or result.trouble]
    print(f"{len(results)} cells, {len(failed)} with trouble")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
