"""A program: announces agents by python-zeroconf until its standard input ends; takes them back if that says goodbye.

announcer.py '[{"interfaces": ["10.0.0.2"], "agents": [{"name": ..., "port": ..., ...}]}, ...]'
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys

from zeroconf import InterfaceChoice, ServiceInfo, Zeroconf

from pyinfra_agent_protocol.advert import SERVICE


def info_of(agent):
    texts = dict(string.partition("=")[::2] for string in agent["strings"])
    return ServiceInfo(
        f"{SERVICE}.local.",
        f"{agent['name']}.{SERVICE}.local.",
        port=agent["port"],
        server=f"{agent['server']}.local.",
        properties=texts,
        addresses=[
            socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
            for address in agent["addresses"]
        ],
    )


def main():
    responders = []
    waiting = []
    for spec in json.loads(sys.argv[1]):
        responder = Zeroconf(interfaces=spec["interfaces"] or InterfaceChoice.All)
        responders.append(responder)
        for agent in spec["agents"]:
            # Several at once: probing for conflicts takes a second, and a conflict is what some tests want.
            registering = responder.async_register_service(info_of(agent), cooperating_responders=True)
            waiting.append((responder, registering))
    for responder, registering in waiting:
        future = asyncio.run_coroutine_threadsafe(registering, responder.loop)
        future.result(20)
    print("ready", flush=True)
    if sys.stdin.readline() == "goodbye\n":
        for responder in responders:
            responder.close()
    os._exit(0)  # else threads of fifty responders say goodbye one after the other


if __name__ == "__main__":
    main()
