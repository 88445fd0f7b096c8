"""pyinfra's API in a process of its own, on the controller's side of a lab.

    python driver.py HOST...        the hosts, as they stand in an inventory

A line is a list of requests, which are made at once; the answer is a line with the list of what came of them. Each is
{"host", "do": a name in ACTIONS, "words": [], "arguments": {}, "cancel_after": 1.5}, and an argument `hidden`
is `_env` with hidden values.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - before anything else imports a socket
import io
import json
import logging
import signal
import sys
from importlib import import_module

import gevent
from gevent.fileobject import FileObjectThread
from pyinfra.api import Config, HiddenValue, Inventory, State
from pyinfra.api.connect import connect_all, disconnect_all

from pyinfra_agent_connector._identity import agent_home, load_or_create
from pyinfra_agent_connector.client import AgentClient
from pyinfra_agent_protocol import PtySize


def command(host, text, **arguments):
    succeeded, output = host.run_shell_command(text, **arguments)
    return {"succeeded": succeeded, "stdout": output.stdout, "stderr": output.stderr}


def put(host, content, target, **arguments):
    return {"succeeded": host.put_file(io.StringIO(content), target, **arguments)}


def get(host, source, **arguments):
    target = io.BytesIO()
    return {"succeeded": host.get_file(source, target, **arguments), "stdout": target.getvalue().decode()}


def fact(host, module, name, **arguments):
    return {
        "succeeded": True,
        "stdout": host.get_fact(getattr(import_module(f"pyinfra.facts.{module}"), name), **arguments),
    }


def interrupt(host, *words):
    """Run *words* in a terminal, and send SIGINT as soon as they say "ready"."""
    client = AgentClient(
        host.data.agent_host,
        host.data.agent_port,
        identity=load_or_create(agent_home()),
        check_key=lambda *_: None,
    )
    client.connect()
    calls, said = [], bytearray()

    def on_output(stream, data):
        said.extend(data)
        if b"ready" in data:
            calls[0].signal(signal.SIGINT)

    try:
        ended = client.run(words, pty=PtySize(), on_start=calls.append, on_output=on_output)
    finally:
        client.close()
    return {"succeeded": ended.exit == 7, "stdout": said.decode()}


ACTIONS = {"command": command, "put": put, "get": get, "fact": fact, "interrupt": interrupt}


def answer(state, request):
    host = state.inventory.get_host(request["host"])
    arguments = request["arguments"]
    if hidden := arguments.pop("hidden", None):
        arguments["_env"] = {name: HiddenValue(value) for name, value in hidden.items()}
    try:
        with gevent.Timeout(request["cancel_after"]):
            return ACTIONS[request["do"]](host, *request["words"], **arguments)
    except (Exception, gevent.Timeout) as error:
        output = getattr(error, "output", None)
        return {
            "succeeded": False,
            "error": str(error),
            "kind": [kind.__name__ for kind in type(error).__mro__],
            "stdout": output.stdout if output is not None else "",
        }


def main():
    # What a user gets who asks for everything.
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    state = State(Inventory((sys.argv[1:], {})), Config())
    connect_all(state)
    print("ready", flush=True)
    # Not plain stdin: reading that would stop the hub, and with it every connection.
    for line in FileObjectThread(sys.stdin):
        asked = [gevent.spawn(answer, state, request) for request in json.loads(line)]
        print(json.dumps([request.get() for request in asked]), flush=True)
    disconnect_all(state)


main()
