"""What `_user_files` runs: `python -I -m pyinfra_agent._file_helper put|get|stat IDENTITY OPTIONS PATH`.

IDENTITY is a JSON array: the name, uid, gid and home directory of the user to become. OPTIONS is an object. The content
of a file to write, verified already, is standard input. On success standard output begins with one line of JSON, behind
which `get` writes the content, and the exit status is 0; else the last line of standard error is JSON with `code` and
`text`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Final

from pyinfra_agent_protocol import Digest

from ._download import Download
from ._incoming import write_all
from ._refusal import FileRefused
from ._stat import stat_path
from ._upload import SyncPolicy, Upload

__all__ = ["main"]

_BLOCK_BYTES: Final = 1 << 20
_REFUSED: Final = 3


def main(words: list[bytes]) -> int:
    """Do what *words* say; returns the exit status."""
    what, identity, options, path = words
    _become(*json.loads(identity))
    try:
        _ACTIONS[what](path, json.loads(options))
    except FileRefused as refusal:
        print(json.dumps({"code": refusal.code, "text": refusal.text}), file=sys.stderr)
        return _REFUSED
    return 0


def _become(name: str, uid: int, gid: int, home: str) -> None:
    """Give up everything that root has, for good: leaving uid 0 gives up all capabilities (capabilities(7))."""
    os.initgroups(name, gid)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # Relative names begin there, as for commands.
    try:
        os.chdir(home)
    except OSError:
        os.chdir("/")


def _put(path: bytes, options: dict[str, Any]) -> None:
    digest = Digest()
    upload = Upload.open(
        path,
        digest=digest,
        mode=options["mode"],
        in_place=options["in_place"],
        sync=SyncPolicy(options["sync"]),
    )
    size = 0
    try:
        while chunk := os.read(0, _BLOCK_BYTES):
            upload.write([chunk])
            size += len(chunk)
        done = upload.commit(size, digest.digest())
    except BaseException:
        upload.abort()
        raise
    print(json.dumps({"created": done.created, "in_place": done.in_place}))


def _get(path: bytes, options: dict[str, Any]) -> None:
    download = Download.open(path)
    try:
        write_all(1, [json.dumps({"mode": download.mode}).encode(), b"\n"])
        while chunk := download.read(_BLOCK_BYTES):
            write_all(1, [chunk])
    finally:
        download.close()


def _stat(path: bytes, options: dict[str, Any]) -> None:
    found: dict[str, Any] | None = None
    looked = stat_path(path, options["follow"])
    if looked is not None:
        found = dict(looked)
        found["target"] = os.fsdecode(looked["target"]) if looked["target"] is not None else None
    print(json.dumps({"stat": found}))


_ACTIONS: Final = {b"put": _put, b"get": _get, b"stat": _stat}

if __name__ == "__main__":
    sys.exit(main(list(map(os.fsencode, sys.argv[1:]))))
