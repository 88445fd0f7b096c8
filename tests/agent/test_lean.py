"""What is in the memory of the agent's process, and what is kept out of it."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest

from pyinfra_agent import _lean

#: Whether this Python can do without OpenSSL.
IS_WHOLE = _lean._has_own_digests()

BEGIN = "from pyinfra_agent._lean import begin; begin(); "

READY = """
import json, os, runpy, sys
from pyinfra_agent._lean import begin
begin()
from pyinfra_agent import _service

def ready(status):
    print(json.dumps(sorted(name for name, module in sys.modules.items() if module is not None)), flush=True)
    os._exit(0)

_service.notify_ready = ready
sys.argv = ["pyinfra-agent", "serve", "--listen", ":0", "--state-dir", sys.argv[1]]
runpy.run_module("pyinfra_agent", run_name="__main__")
"""

#: Large, and not needed before somebody asks for something that few ask for, or before the agent is ready.
LATE = {
    "asyncio",
    "difflib",
    "dns",
    "email",
    "ifaddr",
    "importlib.metadata",
    "tomllib",
    "zeroconf",
    "zipfile",
}

LOADS_ALL = """
import pyinfra_agent._serve, zeroconf, ifaddr, dns.query, dns.tsig, dns.tsigkeyring, dns.update
update = dns.update.UpdateMessage("example.")
update.use_tsig(dns.tsigkeyring.from_text({"key.": "c2VjcmV0"}), algorithm="hmac-sha256")
assert update.to_wire()
from pyinfra_agent_protocol.keys import KeyPair, fingerprint
assert fingerprint(KeyPair.generate().public)
import sys
print("_ssl" in sys.modules, "libcrypto" in open("/proc/self/maps").read())
"""


def output(script, *arguments):
    done = subprocess.run([sys.executable, "-I", "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_agent_is_ready_before_it_loads_what_can_wait(tmp_path):
    loaded = set(json.loads(output(READY, tmp_path)))
    assert "pyinfra_agent._session" in loaded
    assert loaded & LATE == set()
    assert not IS_WHOLE or not loaded & {"ssl", "_ssl", "_hashlib"}


@pytest.mark.skipif(not IS_WHOLE, reason="this Python has digests from OpenSSL only")
def test_agent_that_announces_and_registers_itself_loads_no_openssl():
    assert output(BEGIN + LOADS_ALL) == "False False\n"


@pytest.mark.skipif(not IS_WHOLE, reason="this Python has digests from OpenSSL only")
def test_tls_is_there_for_whoever_asks_trio_for_it():
    script = "import trio._ssl; print(trio._ssl._stdlib_ssl.SSLContext.__module__); import ssl; print(ssl.SSLContext)"
    assert output(BEGIN + script) == "ssl\n<class 'ssl.SSLContext'>\n"


def test_openssl_stays_where_python_has_no_digests_without_it():
    script = "from pyinfra_agent import _lean; _lean._OWN_DIGESTS = ('_no_such',); _lean.begin(); import hashlib, ssl"
    output(f"{script}; assert ssl.SSLContext and hashlib.new('sha256')")


def test_process_that_has_loaded_it_goes_on_with_it():
    script = f"import ssl, sys; {BEGIN} assert sys.modules['ssl'] is ssl; import hashlib, _hashlib, trio"
    output(script)


def test_collector_is_off_until_the_start_is_over_and_leaves_alone_what_was_there():
    script = f"import gc; {BEGIN} print(gc.isenabled()); from pyinfra_agent._lean import settle; settle();"
    assert output(f"{script} print(gc.isenabled(), gc.get_freeze_count() > 1000)") == "False\nTrue True\n"


def test_collector_is_on_in_other_commands():
    assert gc.isenabled()
    script = "import atexit, gc, runpy, sys; sys.argv = ['pyinfra-agent', '--version']; atexit.register(lambda: print("
    script += "gc.isenabled())); runpy.run_module('pyinfra_agent', run_name='__main__')"
    assert output(script).endswith("\nTrue\n")
