"""Valid messages of every kind: where mutations start, and what a well-behaved peer sends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol import _messages as m
from pyinfra_agent_protocol._digest import DIGEST_BYTES

if TYPE_CHECKING:
    from pyinfra_agent_protocol._fields import Message

REQUESTS: Final[tuple[m.Request, ...]] = (
    m.Exec((b"true",), label="true"),
    m.Exec((b"sh", b"-c", b"cat"), env={b"LANG": b"C"}, cwd=b"/tmp", stdin=True, pty=m.PtySize(), timeout_ms=1000),
    m.Exec((b"sh", b"-c", b""), script_index=2, script_size=70_000),
    m.Put(b"/etc/motd", mode=0o644),
    m.Put(b"/etc/motd", in_place=True, argv=(b"sudo", b"tee"), env={b"A": b"B"}),
    m.Get(b"/etc/motd"),
    m.Get(b"/etc/motd", argv=(b"sudo", b"cat"), nonce=bytes(16)),
    m.Stat(b"/etc", follow=False),
    m.Info(),
    m.CloseSession(),
)

RESULTS: Final[tuple[m.Result, ...]] = (
    m.ExecResult(0),
    m.ExecResult(None, 9, "timeout"),
    m.PutResult(5, created=True),
    m.GetResult(5, bytes(DIGEST_BYTES), 0o644),
    m.StatResult({"mode": 0o100644, "size": 5, "user": "root", "mtime": 1.5, "link": None, "name": b"\xff"}),
    m.StatResult(None),
    m.InfoResult({"version": "1", "uptime": 2.0}),
    m.CloseSessionResult(),
)

OTHERS: Final[tuple[Message, ...]] = (
    m.AgentPayload("1"),
    m.ControllerPayload(bytes(16), 1, True, 2**64 - 1, "1"),
    m.Welcome("new", 0, 256, 60, "1", "host", "root"),
    m.Ping(7),
    m.Goodbye("stop", "the agent stops"),
    m.Signal(15),
    m.Resize(24, 80),
    m.PtySize(50, 132, "vt100"),
    m.Cancel(),
    m.End(5, bytes(DIGEST_BYTES)),
    m.Refusal("not-found", "no such file"),
)
