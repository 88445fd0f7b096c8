"""Memory that stays where it is while copies are measured.

A virtual machine may tell its hypervisor which memory is free (Documentation/mm/free_page_reporting.rst of Linux), and
the hypervisor takes it back: whoever needs it next waits until it is there again. For a file of 1 GiB in memory that
takes from nothing to three seconds, whatever copies it, and that is no property of what is measured. Linux reports only
whole free blocks. So before the copies as much memory as they will need is taken once, and all of it is given back but
some pages of each block: then no block is whole, and what is free stays in the machine.
"""

from __future__ import annotations

import mmap
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

_REPORTED_ORDER: Final = Path("/sys/module/page_reporting/parameters/page_reporting_order")
#: Blocks are not where the mapping's are, so a page is kept of each quarter of one.
_KEPT_OF_A_BLOCK: Final = 4


@contextmanager
def kept_in_the_machine(wanted_bytes: int) -> Iterator[int]:
    """Keep up to *wanted_bytes* of free memory from being reported; yields how many, 0 where none is reported."""
    block = _reported_block_bytes()
    # No more than half of what is free: it has to be there all at once.
    count = min(wanted_bytes, procfs.available_memory() // 2) if block else 0
    if not count:
        yield 0
        return
    kept_every = block // _KEPT_OF_A_BLOCK
    count -= count % kept_every
    with mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        for at in range(0, count, mmap.PAGESIZE):
            memory[at] = 1
        for at in range(0, count, kept_every):
            memory.madvise(mmap.MADV_DONTNEED, at + mmap.PAGESIZE, kept_every - mmap.PAGESIZE)
        yield count


def _reported_block_bytes() -> int:
    try:
        order = int(_REPORTED_ORDER.read_text())
    except (OSError, ValueError):  # a kernel without it, or a machine of its own
        return 0
    return mmap.PAGESIZE << order if order >= 0 else 0
