"""The example deploy, by the real ``pyinfra`` command: what `make demo` shows, checked file by file."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PYINFRA = Path(sys.executable).with_name("pyinfra")
RUN_TIMEOUT_SECONDS = 120


def run_pyinfra(inventory, directory, *arguments, **environment):
    """Run the example once in `directory`; return the operations of pyinfra's JSON result."""
    completed = subprocess.run(
        [PYINFRA, "-y", "--json", inventory, EXAMPLES / "site.py", *arguments],
        cwd=directory,
        env={name: value for name, value in os.environ.items() if name != "SITE_DIR"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_SECONDS,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert "Traceback" not in completed.stderr
    results = json.loads(completed.stdout)["results"]
    assert results["failed_hosts"] == []
    assert [operation["name"] for operation in results["operations"] if operation["error"]] == []
    return results["operations"]


def names_of(operations, outcome):
    return [operation["name"] for operation in operations if operation[outcome]]


def permissions(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=["@local", "@agent/loopback"])
def inventory(request):
    """Both ways to this machine: ``@local`` shows that a failure of the other one is the connector's."""
    return request.param


def test_demo_first_run_makes_the_site_and_second_run_changes_nothing(inventory, tmp_path):
    # A blank, for quoting; but pyinfra's own @local downloads with a `cp` whose arguments are not quoted.
    site = tmp_path / ("site" if inventory == "@local" else "the site")
    arguments = ("--data", f"site_dir={site}")

    first = run_pyinfra(inventory, tmp_path, *arguments)

    assert len(first) == 15
    assert names_of(first, "no_change") == ["Take the maintenance page away"]
    release = site / "releases" / "1"
    for name in ("index.html", "assets/site.css", "assets/mark.svg"):
        assert (release / name).read_bytes() == (EXAMPLES / "files" / name).read_bytes()
    assert (release / "robots.txt").read_text() == "User-agent: *\nAllow: /\n"
    assert sorted(path.name for path in (release / "assets").iterdir()) == ["mark.svg", "site.css"]
    assert (site / "current").readlink() == Path("releases/1")
    assert (site / "site.conf").read_text() == (
        f"# Rendered by pyinfra for {inventory}: changes made here are overwritten.\n"
        f"root {site}/current\n"
        "listen 127.0.0.1:8080\n"
        "listen [::1]:8080\n"
    )
    assert (site / "settings.env").read_text() == (
        'WORKERS=2\n# BEGIN PYINFRA BLOCK\nCACHE_SECONDS=300\nCACHE_KEY="$host $path"\n# END PYINFRA BLOCK\n'
    )
    assert (site / "RELEASE").read_text() == "release: 1\nstate: published\n"
    assert (tmp_path / "fetched-site.conf").read_bytes() == (site / "site.conf").read_bytes()
    assert {line.split()[1] for line in (site / "MANIFEST").read_text().splitlines()} == {
        "current/index.html",
        "current/robots.txt",
        "current/assets/site.css",
        "current/assets/mark.svg",
    }
    assert permissions(site) == permissions(release) == 0o755
    assert permissions(release / "index.html") == permissions(release / "robots.txt") == 0o644
    assert permissions(site / "site.conf") == permissions(site / "settings.env") == 0o640
    assert not (site / "maintenance.html").exists()

    second = run_pyinfra(inventory, tmp_path, *arguments)

    assert names_of(second, "success") == []
    assert names_of(second, "no_change") == [
        name for name in names_of(first, "hosts") if name != "Note the first release"
    ]


def test_demo_repairs_what_was_disturbed_and_touches_nothing_else(inventory, tmp_path):
    """Each thing that was disturbed is put right by the operation that states it, and only by that one."""
    site = tmp_path / "site"
    run_pyinfra(inventory, tmp_path, SITE_DIR=str(site))
    release = site / "releases" / "1"
    (release / "index.html").write_text("defaced")
    (release / "assets" / "stray.css").write_text("")
    (site / "current").unlink()
    (site / "maintenance.html").write_text("back soon")

    operations = run_pyinfra(inventory, tmp_path, SITE_DIR=str(site))

    assert names_of(operations, "success") == [
        "Upload the page",
        "Mirror the assets, deleting what is gone here",
        "Point the current release at it",
        "Take the maintenance page away",
        "Write a manifest when the site changed",
    ]
    assert (release / "index.html").read_bytes() == (EXAMPLES / "files" / "index.html").read_bytes()
    assert not (release / "assets" / "stray.css").exists()
    assert not (site / "maintenance.html").exists()


def test_demo_without_a_place_given_writes_below_the_working_directory(inventory, tmp_path):
    run_pyinfra(inventory, tmp_path)

    assert (tmp_path / "example-site" / "current" / "index.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["example-site", "fetched-site.conf"]


@pytest.mark.parametrize(
    ("operations", "status", "said"),
    [
        (
            [{"name": "a", "success": [], "error": [], "no_change": ["h"]}],
            0,
            "1 operations, 1 of them without a change",
        ),
        ([{"name": "a", "success": ["h"], "error": [], "no_change": []}], 1, "h: a: changed"),
        ([{"name": "a", "success": [], "error": ["h"], "no_change": []}], 1, "h: a: failed"),
        ([], 1, "no operation ran"),
    ],
    ids=["unchanged", "changed", "failed", "nothing ran"],
)
def test_no_changes_judges_a_result(operations, status, said, tmp_path):
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"results": {"operations": operations}}))

    completed = subprocess.run(
        [sys.executable, EXAMPLES / "no_changes.py", result], capture_output=True, text=True, check=False
    )

    assert completed.returncode == status
    assert said in (completed.stdout + completed.stderr).splitlines()
