"""Say whether a pyinfra run left everything as it was: exit status 0 if nothing changed, 1 if something did.

    pyinfra -y --json @agent/loopback examples/site.py > result.json
    python examples/no_changes.py result.json

``pyinfra --json`` (pyinfra 3.10 and later) writes its results to stdout and what it is doing to stderr. A deploy that
changes nothing when it runs again is one that states what should be true; this is the check to put behind it in CI.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Print one line per operation that changed or failed, then a summary; return the exit status."""
    if len(arguments) != 1:
        print("usage: no_changes.py RESULT.json", file=sys.stderr)
        return 2
    operations = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))["results"]["operations"]
    disturbed = [operation for operation in operations if operation["success"] or operation["error"]]
    for operation in disturbed:
        for verdict, hosts in (("changed", operation["success"]), ("failed", operation["error"])):
            for host in hosts:
                print(f"{host}: {operation['name']}: {verdict}", file=sys.stderr)
    if not operations:  # a deploy that ran nothing proves nothing
        print("no operation ran", file=sys.stderr)
        return 1
    print(f"{len(operations)} operations, {len(operations) - len(disturbed)} of them without a change")
    return 1 if disturbed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
