"""BIND 9 as a DNS server for zones that a test fills."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager

from tests.discovery.lab import SECONDS, agent

SERVER = "127.0.0.1"
ZONE = "example.test"

_CONFIGURATION = """
options {{
    directory "{directory}"; pid-file none; session-keyfile none; listen-on {{ any; }}; listen-on-v6 {{ none; }};
    recursion no; dnssec-validation no; allow-query {{ any; }}; {options}
}};
controls {{ }};
zone "{zone}" {{ type primary; file "zone.db"; }};
"""


def zone_text(agents, domains=1):
    """Return a zone of these agents; in so many domains for browsing if they are more than one."""
    lines = [
        "$TTL 60",
        f"@ SOA ns.{ZONE}. root.{ZONE}. 1 3600 600 86400 60",
        f"@ NS ns.{ZONE}.",
        "ns A 127.0.0.1",
    ]
    below = [""] if domains == 1 else [f".s{number}" for number in range(domains)]
    if domains > 1:
        lines += [f"b._dns-sd._udp PTR {label[1:]}" for label in below]
    for number, one in enumerate(agents):
        service = f"_pyinfra-agent._tcp{below[number % len(below)]}"
        instance = f"{one['name']}.{service}"
        strings = " ".join(f'"{string}"' for string in one["strings"])
        lines += [
            f"{service} PTR {instance}",
            f"{instance} SRV 0 0 {one['port']} {one['server']}",
            f"{instance} TXT {strings}",
            f"{one['server']} A {one['addresses'][0]}",
        ]
    return "\n".join(lines) + "\n"


def many_agents(count):
    return [agent(f"web{number}", [f"10.{number >> 8}.{number & 255}.1"]) for number in range(count)]


@contextmanager
def named(namespace, directory, text, options=""):
    """Serve the zone inside *namespace* as the server on its loopback."""
    (directory / "zone.db").write_text(text)
    configuration = directory / "named.conf"
    configuration.write_text(_CONFIGURATION.format(directory=directory, zone=ZONE, options=options))
    log = directory / "named.log"
    with open(log, "wb") as file:
        process = namespace.start("named", "-g", "-c", str(configuration), stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + SECONDS
        while b"running" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield SERVER
    finally:
        process.terminate()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
