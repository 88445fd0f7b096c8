"""A program: looks for agents as a controller does and prints what it found as JSON.

looker.py browse | patched-browse | ...
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path


def waited_seconds():
    """Return how long this process was ready to run, and the processors were with others (proc_pid_schedstat)."""
    return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9


def browse():
    from pyinfra_agent_connector._mdns import browse

    before = waited_seconds()
    browsed = browse()
    return {
        "agents": [asdict(agent) for agent in browsed.agents],
        "seconds": browsed.seconds,
        "waited_seconds": waited_seconds() - before,
        "interfaces": [interface.name for interface in browsed.interfaces],
    }


def patched_browse():
    from gevent import monkey

    monkey.patch_all()
    return browse()


def sweep(network, port, *attached):
    import ipaddress

    from pyinfra_agent_connector._probe import sweep

    progress = []
    before = waited_seconds()
    swept = sweep(
        ipaddress.IPv4Network(network),
        int(port),
        is_attached=bool(attached),
        progress=lambda *counts: progress.append(counts),
    )
    return {
        "agents": [[probed.address, probed.key.hex()] for probed in swept.agents],
        "counts": {outcome.name: count for outcome, count in swept.counts.items()},
        "seconds": swept.seconds,
        "waited_seconds": waited_seconds() - before,
        "progress": progress,
        "limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def browse_zone(zone, *servers):
    from pyinfra_agent_connector._zone import ZoneError, browse_zone

    before = waited_seconds()
    try:
        zoned = browse_zone(zone, servers=servers or None)
    except ZoneError as error:
        return {"error": str(error)}
    return {
        "agents": [asdict(agent) for agent in zoned.agents],
        "seconds": zoned.seconds,
        "waited_seconds": waited_seconds() - before,
        "servers": zoned.servers,
    }


def goodbyes():
    """Listen, ask nothing, and end with the first agent that takes its announcement back."""
    import gevent
    from gevent import select

    from pyinfra_agent_connector._announced import service_name
    from pyinfra_agent_connector._dns import Pointer, parse_answer
    from pyinfra_agent_connector._interfaces import interfaces
    from pyinfra_agent_connector._multicast import open_sockets

    sockets = [each for interface in interfaces() for each in open_sockets(interface) if each.is_shared]
    with gevent.Timeout(10):
        while True:
            select.select([each.sock for each in sockets], [], [])
            for each in sockets:
                received = each.receive()
                answer = parse_answer(received[0]) if received and received[0] else None
                for record in answer.records if answer is not None else ():
                    if isinstance(record.data, Pointer) and record.name == service_name("local") and not record.ttl:
                        return {"instance": record.data.target[0].decode()}


PROGRAMS = {
    function.__name__.replace("_", "-"): function for function in (browse, patched_browse, sweep, browse_zone, goodbyes)
}


def main():
    began = time.monotonic()
    result = PROGRAMS[sys.argv[1]](*sys.argv[2:])
    used = resource.getrusage(resource.RUSAGE_SELF)
    result.update(
        total_seconds=time.monotonic() - began,
        cpu_seconds=used.ru_utime + used.ru_stime,
        peak_bytes=used.ru_maxrss * 1024,
    )
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
