"""An example deploy: publish a small static site on every host of the inventory.

    pyinfra -y @agent/loopback examples/site.py                          # a private agent, for this run only
    pyinfra @agent/web1.example.net examples/site.py                     # one host, after a look at the plan
    pyinfra @local examples/site.py --data site_dir=/srv/www/example     # somewhere else

Nothing below knows how pyinfra reaches the host, so the same file works with ``@agent/...``, ``@local`` and plain SSH
host names. It needs no root. Run it twice: the second run reports "No changes" for every operation, because an
operation states what should be true and acts only where it is not.

Everything is written below ``site_dir``: the host data of that name, else the environment variable ``SITE_DIR``, else
``example-site`` in the directory where commands start on the host. One file comes back the other way:
``fetched-site.conf``, in the directory where pyinfra was started.
"""

from __future__ import annotations

import os
import shlex
from io import StringIO
from pathlib import Path

from pyinfra import host
from pyinfra.facts.files import File
from pyinfra.operations import files, server

# Files to upload are found beside this deploy, wherever pyinfra is started. Paths on the host stay plain strings.
HERE = Path(__file__).resolve().parent
SITE_DIR = host.data.get("site_dir") or os.environ.get("SITE_DIR", "example-site")

# --- Directories -----------------------------------------------------------------------------------------------------
# An operation takes the wanted state as arguments. `name` is what the console shows.

files.directory(
    name="Create the site directory",
    path=SITE_DIR,
    mode="755",
)

files.directory(
    name="Create the release directory",
    path=f"{SITE_DIR}/releases/1",
    mode="755",
)

# --- Uploads ---------------------------------------------------------------------------------------------------------
# pyinfra compares checksums first: a file that is already right is not sent again.

page = files.put(
    name="Upload the page",
    src=str(HERE / "files" / "index.html"),
    dest=f"{SITE_DIR}/releases/1/index.html",
    mode="644",
)

files.put(
    name="Upload robots.txt from memory",
    src=StringIO("User-agent: *\nAllow: /\n"),
    dest=f"{SITE_DIR}/releases/1/robots.txt",
    mode="644",
)

assets = files.sync(
    name="Mirror the assets, deleting what is gone here",
    src=str(HERE / "files" / "assets"),
    dest=f"{SITE_DIR}/releases/1/assets",
    delete=True,
)

# A template sees `host` and every keyword argument that the operation itself does not know.
config = files.template(
    name="Render the configuration",
    src=str(HERE / "templates" / "site.conf.j2"),
    dest=f"{SITE_DIR}/site.conf",
    mode="640",
    root=f"{SITE_DIR}/current",
    listen=["127.0.0.1:8080", "[::1]:8080"],
)

# --- Editing a file that others edit too -----------------------------------------------------------------------------
# Where a file is not all ours, state the parts that matter and leave the rest alone.

files.file(
    name="Create the settings file",
    path=f"{SITE_DIR}/settings.env",
    mode="640",
)

files.line(
    name="Set the number of workers",
    path=f"{SITE_DIR}/settings.env",
    line="^WORKERS=.*$",  # the line to find, whatever its value ...
    replace="WORKERS=2",  # ... and the line to leave behind
)

files.block(
    name="Add the cache settings",
    path=f"{SITE_DIR}/settings.env",
    content=["CACHE_SECONDS=300", 'CACHE_KEY="$host $path"'],  # written as it stands: no shell expands it
)

# --- Commands --------------------------------------------------------------------------------------------------------
# pyinfra cannot know what a shell command changes, so it always counts as a change. Say when it is needed instead:
# by looking at the host first (a fact) ...

if not host.get_fact(File, path=f"{SITE_DIR}/RELEASE"):
    server.shell(
        name="Note the first release",
        commands=[f"cd {shlex.quote(SITE_DIR)} && printf 'release: 1\\nstate: draft\\n' > RELEASE"],
    )

files.replace(
    name="Mark the release as published",
    path=f"{SITE_DIR}/RELEASE",
    text="^state: draft$",
    replace="state: published",
)

files.link(
    name="Point the current release at it",
    path=f"{SITE_DIR}/current",
    target="releases/1",
)

files.file(
    name="Take the maintenance page away",
    path=f"{SITE_DIR}/maintenance.html",
    present=False,
)

# ... or by what earlier operations did: `did_change` is asked when this operation's turn comes. This is how a service
# is reloaded only after its configuration changed.
server.shell(
    name="Write a manifest when the site changed",
    commands=[f"cd {shlex.quote(SITE_DIR)} && find current/ -type f -exec sha256sum {{}} + | sort -k 2 > MANIFEST"],
    _if=[lambda: page.did_change() or assets.did_change() or config.did_change()],
)

# --- Download --------------------------------------------------------------------------------------------------------

files.get(
    name="Fetch the rendered configuration",
    src=f"{SITE_DIR}/site.conf",
    dest=str(Path.cwd() / "fetched-site.conf"),
)
