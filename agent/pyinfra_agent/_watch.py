"""Sessions that live on follow what the administrator writes: whoever is not let in any more loses its sessions.

Files are looked at, not listened to: while there are sessions that is a few stat(2) calls each time, and nothing has to
be right about editors that write a new file, mounts, or how many watches a user may have.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from ._connection import Authorizer
    from ._session import AgentSession, SessionTable

__all__ = ["follow_changes"]

#: Both, a look that comes just too late and a last word have to fit into a second. Each look wakes the process, which
#: costs more than the look.
_LOOK_SECONDS: Final = 0.5
_SETTLE_SECONDS: Final = 0.25


async def follow_changes(authorizer: Authorizer, sessions: SessionTable) -> None:
    """End sessions as soon as their controllers would not be let in again; never returns.

    A change acts when two looks in a row find the same: many editors, and `>` in a shell, empty a file before they
    fill it, and nobody must lose a session between the two.
    """
    followed = last = authorizer.signature
    judged: set[AgentSession] = set()
    while True:
        while not sessions.sessions:
            await sessions.opened.park()
        await trio.sleep(_LOOK_SECONDS if last == followed else _SETTLE_SECONDS)
        seen = authorizer.signature
        is_settled, last = seen == last, seen
        has_changed = is_settled and seen != followed
        if has_changed:
            followed = seen
        now = time.time()
        for session in sessions.sessions:
            ends = session.controller.ends
            # A new one was let in by what the files were then, which may have been another thing than at both looks.
            is_new = is_settled and session not in judged
            if has_changed or is_new or (ends is not None and now >= ends):
                sessions.judge(session, authorizer)
        judged = set(sessions.sessions) if is_settled else judged.intersection(sessions.sessions)
