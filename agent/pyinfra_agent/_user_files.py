"""put, get and stat of a controller whose line says `user=`: a process of that user opens the files, never the agent.

The process is `python -m pyinfra_agent._file_helper`. It does what the agent does for others, with the same code: it
replaces files whole, keeps their attributes and gives the same refusals. It becomes the user itself, once Python has
read its own files and before it looks at anything that the controller names: so the agent may be installed where only
root may look, and nothing of the controller's is in its environment.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pyinfra_agent_protocol import Digest, GetResult, PutResult, RequestRefused, StatResult

from ._commands import start_command
from ._incoming import open_spool
from ._spawn import Command, Stdin
from ._threads import in_thread
from ._transfers import announced, unless_cancelled

if TYPE_CHECKING:
    from pyinfra_agent_protocol import Get, Put, Stat

    from ._channel import RequestChannel
    from ._context import Context
    from ._incoming import Incoming
    from ._process import Process

__all__ = ["get_as_user", "put_as_user", "stat_as_user"]

_MODULE: Final = "pyinfra_agent._file_helper"
_BLOCK_BYTES: Final = 1 << 20
#: A refusal, and what Python says when it cannot even start.
_ANSWER_BYTES: Final = 64 * 1024


async def put_as_user(context: Context, channel: RequestChannel, request: Put) -> PutResult:
    """Receive a file, verify it, and let a process of the user put it at its place."""
    return await unless_cancelled(channel, lambda: _put(context, channel, request))


async def get_as_user(context: Context, channel: RequestChannel, request: Get) -> GetResult:
    """Send what a process of the user reads."""
    return await unless_cancelled(channel, lambda: _get(context, channel, request))


async def stat_as_user(context: Context, channel: RequestChannel, request: Stat) -> StatResult:
    """Let a process of the user look at a path."""
    process = _start(context, "stat", request.path, Stdin.NONE, follow=request.follow)
    found = (await _answer(process))["stat"]
    if found is not None and found["target"] is not None:
        found["target"] = os.fsencode(found["target"])
    return StatResult(found)


async def _put(context: Context, channel: RequestChannel, request: Put) -> PutResult:
    digest = Digest()
    spool: Incoming = await in_thread(lambda: open_spool(request.path, digest))
    try:
        while chunks := await channel.receive(_BLOCK_BYTES):
            await in_thread(partial(spool.write, chunks))
        size, expected = announced(channel.ended)
        await in_thread(lambda: spool.verify(size, expected))
        process = _start(
            context,
            "put",
            request.path,
            spool.fd,
            mode=request.mode,
            in_place=request.in_place,
            sync=context.settings.sync.value,
        )
    finally:
        spool.close()
    done = await _answer(process)
    return PutResult(size, done["created"], done["in_place"])


async def _get(context: Context, channel: RequestChannel, request: Get) -> GetResult:
    process = _start(context, "get", request.path, Stdin.NONE)
    digest = Digest()
    size = 0
    said = b""
    head = b""
    mode: int | None = None
    try:
        while (output := await process.read(_BLOCK_BYTES)) is not None:
            stream, data = output
            if stream == 1:
                said = (said + data)[-_ANSWER_BYTES:]
                continue
            if mode is None:
                head += data
                line, newline, data = head.partition(b"\n")
                if not newline:
                    continue
                mode = json.loads(line)["mode"]
            if data:
                size += len(data)
                digest.update(data)
                await channel.send(data)
        ended = await process.wait()
        if ended.code != 0 or mode is None:
            raise _refusal(said)
    finally:
        if process.exit is None:
            process.kill_tree()  # cancelled: nobody wants the rest
        process.abandon()
    return GetResult(size, digest.digest(), mode)


def _start(context: Context, what: str, path: bytes, stdin: int | Stdin, **options: object) -> Process:
    account = context.account
    assert account is not None
    environment = context.environment()
    identity = [account.name, account.uid, account.gid, os.fsdecode(context.directory(environment))]
    words = [sys.executable, "-I", "-m", _MODULE, what, json.dumps(identity), json.dumps(options)]
    command = Command(
        argv=[*map(os.fsencode, words), path], env=environment, cwd=b"/", stdin=stdin, nice=context.settings.nice
    )
    return start_command(replace(context, account=None), command)


async def _answer(process: Process) -> dict[str, Any]:
    """Return what the helper says; raises its refusal."""
    said = [b"", b""]
    try:
        while (output := await process.read(_ANSWER_BYTES)) is not None:
            stream, data = output
            said[stream] = (said[stream] + data)[-_ANSWER_BYTES:]
        ended = await process.wait()
    finally:
        process.abandon()
    if ended.code != 0:
        raise _refusal(said[1])
    answer: dict[str, Any] = json.loads(said[0])
    return answer


def _refusal(said: bytes) -> RequestRefused:
    """Return why the helper has failed: in its own words, or, where it could not even start, in those of others."""
    lines = said.decode("utf-8", "replace").strip().splitlines()
    last = lines[-1] if lines else "it was ended"
    try:
        refused = json.loads(last)
        return RequestRefused(refused["code"], refused["text"])
    except (ValueError, TypeError, KeyError):
        text = "".join(c if c.isprintable() else "?" for c in last)
        return RequestRefused("helper", f"cannot start the agent's file helper as the controller's user: {text}")
