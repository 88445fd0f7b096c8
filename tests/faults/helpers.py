"""What the tests of faults share: how long they last, and work that shows whether anything was lost or done twice."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import gevent

from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_connector.client import AgentClient
from tests.faults.proxy import LOCALHOST

if TYPE_CHECKING:
    from pathlib import Path

SOAK = os.environ.get("PYINFRA_AGENT_SOAK") == "1"
"""Set by `make soak`: the same tests, many more times and much longer."""

CHUNK_BYTES = 256 * 1024
REQUEST_BYTES_MIN = 200
"""What the request of `NumberedLines` takes on the wire at least: up to here a fault in it comes before its answer."""


def times(short, soak):
    """Return how often, how many or how long: *soak* where a soak was asked for."""
    return soak if SOAK else short


@contextmanager
def connected(port, controller, **options):
    """Yield a client of *controller* that is connected to *port* on 127.0.0.1."""
    options = {"connect_seconds": 5.0, "resume_seconds": 30.0} | options
    client = AgentClient(
        LOCALHOST, port, identity=load_or_create(controller.home), check_key=lambda *_: None, **options
    )
    client.connect()
    try:
        yield client
    finally:
        client.close()


class NumberedLines:
    """A command that prints 10,000 numbered lines and adds one line to a file each time it is run."""

    # In four parts: some output is under way while the rest does not exist yet.
    SCRIPT = """echo run >> "$0"
for part in 0 1 2 3; do
    seq -f 'line %.0f of ten thousand' $((part * 2500 + 1)) $((part * 2500 + 2500))
    sleep 0.01
done
exit 3
"""
    EXPECTED = b"".join(b"line %d of ten thousand\n" % number for number in range(1, 10_001))

    def __init__(self, directory: Path) -> None:
        self.counter = directory / "runs"
        self.output = bytearray()

    def run(self, client):
        """Run it once; assert that every byte of its output came once, and that it ran once."""
        ended = client.run(["sh", "-c", self.SCRIPT, str(self.counter)], on_output=self._take)
        assert ended.exit == 3
        assert bytes(self.output) == self.EXPECTED
        assert self.counter.read_text() == "run\n"

    def _take(self, stream, data):
        assert stream == "stdout", data
        self.output += data


def chunks_of(content):
    """Return *content* as an upload takes it."""
    view = memoryview(content)
    return (bytes(view[start : start + CHUNK_BYTES]) for start in range(0, len(content), CHUNK_BYTES))


def until(condition, seconds=10.0, what="the condition"):
    """Let greenlets run until *condition* holds; return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        gevent.sleep(0.01)
    return value


def descriptors():
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))
