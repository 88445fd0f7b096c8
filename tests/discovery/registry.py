"""BIND 9 as the primary of a zone that agents may update with a key."""

from __future__ import annotations

import base64
import time
from contextlib import contextmanager

from tests.discovery.lab import SECONDS
from tests.discovery.named import ZONE

SECRET = base64.b64encode(b"thirty-two bytes, for hmac-sha256").decode()
OTHER_SECRET = base64.b64encode(b"somebody else's thirty-two bytes.").decode()

_CONFIGURATION = """
{key}
options {{
    directory "{directory}"; pid-file none; session-keyfile none; listen-on {{ any; }}; listen-on-v6 {{ none; }};
    recursion no; dnssec-validation no; allow-query {{ any; }};
}};
controls {{ }};
zone "{zone}" {{
    type primary; file "zone.db"; update-policy {{ grant agents zonesub ANY; }};
}};
"""


def key_text(name="agents", secret=SECRET, algorithm="hmac-sha256"):
    return f'key "{name}" {{\n\talgorithm {algorithm};\n\tsecret "{secret}";\n}};\n'


def key_file(directory, text=None, mode=0o600):
    """Write a key as tsig-keygen(8) prints it; return where."""
    path = directory / f"key-{time.monotonic_ns()}"
    path.write_text(text or key_text())
    path.chmod(mode)
    return str(path)


@contextmanager
def registry(namespace, directory):
    """Serve an empty zone inside *namespace*."""
    (directory / "zone.db").write_text(
        f"$TTL 60\n@ SOA ns.{ZONE}. root.{ZONE}. 1 3600 600 86400 60\n@ NS ns.{ZONE}.\n"
        "ns A 127.0.0.1\nweb1 A 192.0.2.99\n"
    )
    configuration = directory / "named.conf"
    configuration.write_text(_CONFIGURATION.format(directory=directory, zone=ZONE, key=key_text()))
    log = directory / "named.log"
    with open(log, "wb") as file:
        process = namespace.start("named", "-g", "-c", str(configuration), stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + SECONDS
        while b"running" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield log
    finally:
        process.kill()
        process.wait()
