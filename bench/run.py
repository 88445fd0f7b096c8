"""The agent beside pyinfra's SSH connector and others, on this machine.

Each peer is a process of its own that is driven through pyinfra's API; the peers take turns, so that a drift of the
machine hits all alike. Root and OpenSSH's server are needed for the peer that the others are measured by.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import figures
import machine
import tables
import targets
from client import WorkerClient, workers
from delaynet import delay_net
from figures import Section
from lab import LOOPBACK, Lab, PeerUnavailableError, temporary_lab
from peers import DEFAULT_PEERS, PEERS, open_peers
from plan import FULL, SHORT, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

RESULTS: Final = Path(__file__).with_name("RESULTS.md")
ROUND_TRIPS: Final = "round-trips"


def main() -> None:
    """Measure, print, and where asked to, write bench/RESULTS.md."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    start = time.monotonic()
    with temporary_lab() as lab:
        sections = list(_measured(lab, arguments.peers, arguments.figures, FULL if arguments.full else SHORT))
    verdicts = targets.verdicts(sections)
    if verdicts is not None:
        sections.insert(0, verdicts)
        _print(verdicts)
    _progress(f"{time.monotonic() - start:.0f} s in all")
    if arguments.write:
        tables.replace_generated(RESULTS, _document(sections))
        _progress(f"wrote {RESULTS.parent.name}/{RESULTS.name}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python bench/run.py", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the long form: more samples, and files of 1 GiB too")
    parser.add_argument("--write", action="store_true", help="put the tables into bench/RESULTS.md")
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=PEERS,
        default=DEFAULT_PEERS,
        metavar="PEER",
        help=f"of {', '.join(PEERS)}; default: {' '.join(DEFAULT_PEERS)}",
    )
    names = [*_FIGURES, ROUND_TRIPS]
    parser.add_argument(
        "--figures", nargs="+", choices=names, default=names, metavar="FIGURE", help=f"of {', '.join(names)}"
    )
    return parser.parse_args()


_FIGURES: Final[dict[str, Callable[[Sequence[WorkerClient], Plan, Lab], list[Section]]]] = {
    "connect": lambda clients, plan, lab: figures.connect(clients, plan.connect),
    "command": lambda clients, plan, lab: figures.command(clients, plan.command),
    "puts": lambda clients, plan, lab: figures.puts(clients, plan.puts, lab),
    "copy": lambda clients, plan, lab: figures.copy(clients, plan.copy, lab),
    "stream": lambda clients, plan, lab: figures.stream(clients, plan.stream),
}


def _measured(lab: Lab, wanted_peers: Sequence[str], wanted_figures: Sequence[str], plan: Plan) -> Iterator[Section]:
    with ExitStack() as stack:
        peers, missing = open_peers(stack, lab, LOOPBACK, wanted_peers)
        if missing:
            yield _print(_left_out("Peers left out", missing))
        if not peers:
            sys.exit("No peer is left to measure.")
        for figure, measure in _FIGURES.items():
            if figure in wanted_figures and any(figure in peer.figures for peer in peers):
                with workers(peers, figure, LOOPBACK, lab) as clients:
                    _announce(figure, clients)
                    yield from map(_print, measure(clients, plan, lab))
    if ROUND_TRIPS in wanted_figures:
        took_part = [name for name in wanted_peers if name not in missing]
        yield from map(_print, _round_trips(lab, took_part, plan))


def _round_trips(lab: Lab, wanted: Sequence[str], plan: Plan) -> list[Section]:
    """The figure that needs servers of its own, behind the slow wire."""
    with ExitStack() as stack:
        try:
            net = stack.enter_context(delay_net())
        except PeerUnavailableError as error:
            return [Section("Round trips", f"Left out: {error}.")]
        peers, missing = open_peers(stack, lab, net.place, wanted)
        left_out = [_left_out("Peers left out of the round trips", missing)] if missing else []
        if not any(ROUND_TRIPS in peer.figures for peer in peers):
            return left_out
        with workers(peers, ROUND_TRIPS, net.place, lab) as clients:
            _announce(ROUND_TRIPS, clients)
            return [*left_out, *figures.round_trips(clients, plan.round_trips, lab, net)]


def _left_out(title: str, missing: dict[str, PeerUnavailableError]) -> Section:
    return Section(title, "\n".join(f"- {name}: {reason}" for name, reason in missing.items()))


def _document(sections: Sequence[Section]) -> str:
    command = shlex.join(["python", "bench/run.py", *sys.argv[1:]])
    day = time.strftime("%Y-%m-%d", time.gmtime())
    parts = [f"`{command}` on {day}:", machine.facts(), *(_markdown(section) for section in sections)]
    return "\n\n".join(parts)


def _markdown(section: Section) -> str:
    return f"### {section.title}\n\n{section.text}"


def _print(section: Section) -> Section:
    print(f"{_markdown(section)}\n", flush=True)
    return section


def _announce(figure: str, clients: Sequence[WorkerClient]) -> None:
    _progress(f"{figure}: {', '.join(client.label for client in clients)}")


def _progress(text: str) -> None:
    print(f"# {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
