"""The put, get and stat requests: files between a channel and the disk.

Blocking calls run in threads (`_threads`): one call for a small file from opening to renaming, one per two mebibytes of
a large one.  While a thread digests and writes, the event loop decrypts what comes next.  Where a file is in memory
(tmpfs), and open, the event loop reads and writes it by itself: there is no disk to wait for.

As another user nothing is opened by the agent: the bytes go through a process that the controller's
wrapping (sudo, su, doas) starts as that user, with a nameless file that was verified first as its
standard input.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from pyinfra_agent_protocol import DATA_BODY_BYTES, Digest, GetResult, PutResult, RequestRefused, StatResult

from ._commands import start_command
from ._download import Download
from ._incoming import open_spool
from ._refusal import show_path
from ._replaced import free_replaced
from ._spawn import Command, Stdin
from ._stat import stat_path
from ._threads import at_once, in_thread, in_thread_briefly
from ._upload import Upload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pyinfra_agent_protocol import Get, Put, Stat, StreamEnded

    from ._channel import RequestChannel
    from ._context import Context
    from ._incoming import Incoming
    from ._process import Process
    from ._upload import UploadResult

__all__ = ["announced", "run_get", "run_put", "run_stat", "unless_cancelled"]

#: What one call into a thread reads or writes, about two mebibytes: half as much makes a transfer's agent 7 % dearer.
#: A multiple of a frame's body, so that no crumb is left over.
_BLOCK_BYTES: Final = 34 * DATA_BODY_BYTES
#: The same without a thread: what was decrypted is written, and what was read encrypted, while it is in the
#: processor's cache.
_PIECE_BYTES: Final = 4 * DATA_BODY_BYTES
#: So many of them are sent before others run, while the socket takes what there is: about a millisecond.
_PIECES_A_TURN: Final = 4
#: What is read of a helper's output at once.
_OUTPUT_BYTES: Final = 1 << 20
#: The end of a helper's error output that is repeated to the controller.
_SAID_BYTES: Final = 2048
#: What sudo adds to the line that says what is wrong.
_AFTERTHOUGHT: Final = "sudo: error initializing audit plugin"

T = TypeVar("T")


async def run_put(context: Context, channel: RequestChannel, request: Put) -> PutResult:
    """Receive a file, verify it, and let it appear at its place, or give it to the writer."""
    if request.argv is None and channel.ended is not None and not channel.cancelled.is_set():
        return await _put(context, channel, request)  # all data is there: nothing is waited for that a cancel would end
    put = _put_as_other if request.argv is not None else _put
    return await unless_cancelled(channel, lambda: put(context, channel, request))


async def run_get(context: Context, channel: RequestChannel, request: Get) -> GetResult:
    """Send a file, or what the reader prints."""
    get = _get_as_other if request.argv is not None else _get
    return await unless_cancelled(channel, lambda: get(context, channel, request))


async def run_stat(context: Context, channel: RequestChannel, request: Stat) -> StatResult:
    """Look at a path."""
    found = await in_thread_briefly(lambda: stat_path(context.locate(request.path), request.follow))
    return StatResult(dict(found) if found is not None else None)


async def unless_cancelled(channel: RequestChannel, transfer: Callable[[], Awaitable[T]]) -> T:
    """Await *transfer*, or stop it when the controller no longer wants it: a transfer is never left half done."""
    with trio.CancelScope() as scope:
        channel.when_cancelled(scope.cancel)
        return await transfer()
    raise RequestRefused("cancelled", "the transfer was cancelled")


async def _put(context: Context, channel: RequestChannel, request: Put) -> PutResult:
    path = context.locate(request.path)

    upload: Upload | None = None
    is_in_memory = is_quick = False

    def write(chunks: Sequence[bytes | bytearray], ended: StreamEnded | None) -> UploadResult | None:
        """Do in one call what can be done now: open, write, and commit if *ended*."""
        nonlocal upload, is_in_memory
        if upload is None:
            upload = Upload.open(
                path,
                digest=Digest(),
                mode=request.mode,
                in_place=request.in_place,
                sync=context.settings.sync,
                litter=context.litter,
            )
            is_in_memory = ended is None and upload.is_in_memory()
        upload.write(chunks)
        return upload.commit(*announced(ended), holds_replaced=True) if ended is not None else None

    try:
        while True:
            chunks = await channel.receive(_PIECE_BYTES if is_quick else _BLOCK_BYTES)
            ended = channel.ended if channel.is_drained else None
            if is_quick and ended is None:
                _, is_quick = at_once(partial(write, chunks, None))
                continue
            run = in_thread_briefly if upload is None and ended is not None else in_thread
            done = await run(partial(write, chunks, ended))
            is_quick = is_in_memory
            if done is not None:
                if done.replaced is not None:
                    channel.when_released(partial(free_replaced, done.replaced))
                return PutResult(done.size, done.created, done.in_place)
    except BaseException:
        if upload is not None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(upload.abort)
        raise


def announced(ended: StreamEnded | None) -> tuple[int, bytes]:
    """Return what the controller said of its data at their end: their size and digest."""
    if ended is None or ended.size is None or ended.digest is None:
        raise RequestRefused("bad-request", "put: the end of the data lacks its size or its digest")
    return ended.size, ended.digest


async def _get(context: Context, channel: RequestChannel, request: Get) -> GetResult:
    path = context.locate(request.path)
    digest = Digest()

    is_in_memory = False

    def begin() -> tuple[Download, bytes]:
        nonlocal is_in_memory
        download = Download.open(path, digest=digest)
        try:
            is_in_memory = download.size > _PIECE_BYTES and download.is_in_memory()
            return download, download.read_block(_PIECE_BYTES if is_in_memory else _BLOCK_BYTES)
        except BaseException:
            download.close()
            raise

    download, block = await in_thread_briefly(begin)
    size = 0
    wanted = _PIECE_BYTES if is_in_memory else _BLOCK_BYTES
    is_quick = is_in_memory
    pieces = 0
    try:
        # A block that is not full is the last one.
        while len(block) == wanted:
            size += len(block)
            wanted = _PIECE_BYTES if is_quick else _BLOCK_BYTES
            read = partial(download.read_block, wanted)
            if is_quick:
                await channel.send(block)
                # In the writer's turn it would have left the processor's cache; but others want theirs, too.
                channel.push()
                pieces += 1
                if pieces % _PIECES_A_TURN:
                    await trio.lowlevel.checkpoint_if_cancelled()
                else:
                    await trio.lowlevel.checkpoint()
                block, is_quick = at_once(read)
            else:
                following = _Ahead(read)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(following.read)
                    await channel.send(block)
                block = following.result()
                is_quick = is_in_memory
        size += len(block)
        await channel.send(block)
    finally:
        download.close()
    return GetResult(size, digest.digest(), download.mode)


class _Ahead:
    """The next block, read while the one before is sent."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._block = b""
        self._refusal: RequestRefused | None = None

    async def read(self) -> None:
        try:
            self._block = await in_thread(self._read)
        except RequestRefused as refusal:
            self._refusal = refusal  # raised by `result`: a nursery would put it into a group

    def result(self) -> bytes:
        if self._refusal is not None:
            raise self._refusal
        return self._block


async def _put_as_other(context: Context, channel: RequestChannel, request: Put) -> PutResult:
    spool: Incoming = await in_thread(lambda: open_spool(request.path, Digest()))
    try:
        while chunks := await channel.receive(_BLOCK_BYTES):
            await in_thread(partial(spool.write, chunks))
        size, digest = announced(channel.ended)
        await in_thread(lambda: spool.verify(size, digest))
        process = _start_helper(context, request, spool.fd)
    finally:
        spool.close()
    try:
        said = [b"", b""]
        while (output := await process.read(_OUTPUT_BYTES)) is not None:
            stream, data = output
            said[stream] = (said[stream] + data)[-_SAID_BYTES:]
        # nologin(8) says that the account is not available where others print results.
        await _require_success(process, said[1] or said[0], "write", request.path)
    finally:
        process.abandon()
    return PutResult(size, in_place=True)


async def _get_as_other(context: Context, channel: RequestChannel, request: Get) -> GetResult:
    process = _start_helper(context, request, Stdin.NONE)
    digest = Digest()
    size = 0
    content = _AfterNonce(request.nonce)
    said = b""
    try:
        while (output := await process.read(_OUTPUT_BYTES)) is not None:
            stream, data = output
            if stream == 1:
                said = (said + data)[-_SAID_BYTES:]
            elif data := content.feed(data):
                size += len(data)
                digest.update(data)
                await channel.send(data)
        await _require_success(process, said or content.chatter, "read", request.path)
        if not content.has_begun:
            text = f"cannot read {show_path(request.path)} as the other user: its command ended before it began to read"
            raise RequestRefused("helper", text)
    finally:
        if process.exit is None:
            process.kill_tree()  # cancelled: nobody wants the rest, and a reader has nothing to finish
        process.abandon()
    return GetResult(size, digest.digest())


def _start_helper(context: Context, request: Put | Get, stdin: int | Stdin) -> Process:
    assert request.argv is not None
    environment = context.environment()
    directory = context.directory(environment)
    environment |= request.env or {}
    return start_command(context, Command(argv=request.argv, env=environment, cwd=directory, stdin=stdin))


class _AfterNonce:
    """What follows a nonce in a helper's output: a profile may print before it.

    Attributes:
        has_begun: the nonce came.
        chatter: until then, the end of what came instead: it may explain a failure.
    """

    def __init__(self, nonce: bytes) -> None:
        self._nonce = nonce
        self.has_begun = not nonce
        self.chatter = b""

    def feed(self, data: bytes) -> bytes:
        """Return what of *data* is content."""
        if self.has_begun:
            return data
        seen = self.chatter + data
        _, nonce, content = seen.partition(self._nonce)
        self.has_begun = bool(nonce)
        self.chatter = b"" if nonce else seen[-max(len(self._nonce), _SAID_BYTES) :]
        return content


async def _require_success(process: Process, said: bytes, doing: str, path: bytes) -> None:
    ended = await process.wait()
    if ended.code == 0:
        return
    lines = said.decode("utf-8", "backslashreplace").strip().splitlines()
    if len(lines) > 1 and lines[-1].startswith(_AFTERTHOUGHT):
        lines.pop()
    how = f"exit status {ended.code}" if ended.code is not None else f"killed by signal {ended.signal}"
    text = f"cannot {doing} {show_path(path)} as the other user: {lines[-1] if lines else how}"
    raise RequestRefused("helper", "".join(c if c.isprintable() else "?" for c in text))
