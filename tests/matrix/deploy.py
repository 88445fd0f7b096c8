"""A deploy for every generation of pyinfra: what examples/site.py does with operations and arguments that all have.

Everything happens below the host data `site_dir`.  Run it twice: the second run changes nothing.
"""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from pyinfra import __version__, host
from pyinfra.facts.files import File
from pyinfra.facts.server import Command
from pyinfra.operations import files, server

HERE = Path(__file__).resolve().parent
PREFIX = "_" if int(__version__.split(".")[0]) >= 3 else ""
SITE_DIR = host.data.site_dir


def arguments(**values):
    """Name global arguments as the installed pyinfra does."""
    return {f"{PREFIX}{name}": value for name, value in values.items()}


files.directory(name="Create the release directory", path=f"{SITE_DIR}/releases/1", mode="755")
files.put(name="Upload the deploy itself", src=f"{HERE}/deploy.py", dest=f"{SITE_DIR}/releases/1/deploy.py", mode="644")
files.put(name="Upload from memory", src=StringIO("é\nAllow: /\n"), dest=f"{SITE_DIR}/robots.txt", mode="640")
files.put(
    name="Upload with arguments",
    src=StringIO("umlaut: ü\n"),
    dest=f"{SITE_DIR}/with arguments.txt",
    **arguments(env={"A": "b"}, timeout=30),
)
files.sync(name="Mirror a directory", src=str(HERE / "assets"), dest=f"{SITE_DIR}/assets", delete=True)
files.template(
    name="Render a template", src=f"{HERE}/site.conf.j2", dest=f"{SITE_DIR}/site.conf", root=f"{SITE_DIR}/current"
)
files.file(name="Create a file", path=f"{SITE_DIR}/settings.env", mode="600")
files.line(name="Set a line", path=f"{SITE_DIR}/settings.env", line="^WORKERS=.*$", replace="WORKERS=2")
files.link(name="Point the current release at it", path=f"{SITE_DIR}/current", target="releases/1")

if not host.get_fact(File, path=f"{SITE_DIR}/STEPS"):
    server.shell(
        name="Run commands with arguments",
        commands=[
            'printf "%s|%s|" "$MATRIX" "$(pwd)" >> STEPS',
            "cat >> STEPS",
            "exit 7",
        ],
        **arguments(
            chdir=SITE_DIR,
            env={"MATRIX": "first-step"},
            shell_executable="bash",
            stdin="from stdin",
            success_exit_codes=[0, 7],
            timeout=30,
        ),
    )

files.get(name="Fetch the rendered file", src=f"{SITE_DIR}/site.conf", dest="fetched-site.conf")
# The deploy is prepared before it runs: what is there now is what the last run left.
print(f"seen: {host.get_fact(Command, f'cat {SITE_DIR}/STEPS 2> /dev/null || echo nothing')}")
