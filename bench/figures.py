"""The figures: each asks the workers in turn and makes one section of the report."""

from __future__ import annotations

import filecmp
import os
import shutil
import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import procfs
from client import Answer, WorkerClient, interleaved
from memory import kept_in_the_machine
from peers import REFERENCE
from plan import BUDGET_S, ONCE, PUT_BYTES, ROUND_TRIP_S, STREAM_BYTES, STREAM_LINE_BYTES, Effort
from procfs import KIB, MIB
from tables import ABSENT, number, quartiles, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from delaynet import DelayNet
    from lab import Lab

MS: Final = 1e3
SPEED: Final = f"speed, {REFERENCE} = 1"
WRITE_BYTES: Final = 16 * MIB
#: Of the largest file: itself, a copy of each peer's, the one that came back, and as much again for everything else.
_KEPT_FILES: Final = 8
STEPS: Final = {  # as `worker.Operations.session` names them, and as the report does
    "connect": "connect()",
    "first command": "first command after it",
    "command": "command",
    "first put": "first put of 1 KiB",
    "put": "put of 1 KiB",
    "first get": "first get of 1 KiB",
    "get": "get of 1 KiB",
}


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the report. `values` holds, by name and peer, what the targets are about."""

    title: str
    text: str
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def connect(clients: Sequence[WorkerClient], effort: Effort) -> list[Section]:
    """Cold connections, both alone and until `true` has answered."""
    interleaved(clients, ONCE, lambda client: client.ask("connect", count=1, budget_s=BUDGET_S))  # imports, first trust
    answers = interleaved(clients, effort, lambda client: client.ask("connect", count=effort.count, budget_s=BUDGET_S))
    answered = _samples(answers, "answered_s")
    connected = _samples(answers, "connected_s")
    return [
        Section(
            "Cold connect until the first `true` has answered",
            _times(clients, answered),
            {"connect and command": _medians(answered)},
        ),
        Section("Connect alone", _times(clients, connected), {"connect": _medians(connected)}),
    ]


def command(clients: Sequence[WorkerClient], effort: Effort) -> list[Section]:
    """`true` on a connection that is there."""
    interleaved(clients, ONCE, _warm_up)
    answers = interleaved(clients, effort, lambda client: client.ask("command", count=effort.count, budget_s=BUDGET_S))
    samples = _samples(answers, "s")
    return [Section("`true`, one after another", _times(clients, samples), {"command": _medians(samples)})]


def puts(clients: Sequence[WorkerClient], effort: Effort, lab: Lab) -> list[Section]:
    """Many small uploads to distinct files, one after another."""
    local = _file(lab, PUT_BYTES)
    interleaved(clients, ONCE, _warm_up)

    def ask(client: WorkerClient) -> Answer | None:
        directory = lab.files / "puts"
        directory.mkdir()
        try:
            remote = f"{directory}/file-"
            return client.ask(
                "put", local=str(local), remote=remote, distinct=True, count=effort.count, budget_s=BUDGET_S
            )
        finally:
            shutil.rmtree(directory)

    samples = _samples(interleaved(clients, effort, ask), "s")
    rates = {label: [1 / statistics.fmean(taken)] for label, taken in samples.items() if taken}
    reference = rates.get(REFERENCE, [None])[0]
    rows = [
        [
            client.label,
            str(len(samples[client.label])),
            number(rates[client.label][0]),
            number(statistics.median(samples[client.label]) * MS),
            quartiles(samples[client.label], MS),
            _ratio(rates[client.label][0], reference),
        ]
        for client in clients
        if samples[client.label]
    ]
    title = f"Sequential puts of {_size(PUT_BYTES)} to new files"
    head = ["peer", "n", "puts/s", "median ms", "quartiles", SPEED]
    return [Section(title, _with_failures(table(head, rows), clients))]


def copy(clients: Sequence[WorkerClient], sizes: Mapping[int, Effort], lab: Lab) -> list[Section]:
    """Files to the target and back, with what both sides' memory grows by."""
    interleaved(clients, ONCE, _warm_up)
    _warm_up_copies(clients, lab)
    with kept_in_the_machine(_KEPT_FILES * max(sizes)) as kept_bytes:
        section = _copy(clients, sizes, lab)
    note = f"{_size(kept_bytes)} of memory were kept from the hypervisor meanwhile (`memory.py`)." if kept_bytes else ""
    return [replace(section, text="\n\n".join(filter(None, [section.text, note])))]


def _copy(clients: Sequence[WorkerClient], sizes: Mapping[int, Effort], lab: Lab) -> Section:
    rows: list[list[str]] = []
    values: dict[str, Mapping[str, float]] = {}
    notes: list[str] = []
    for size, effort in sizes.items():
        room = min(shutil.disk_usage(lab.files).free, procfs.available_memory())
        if room < 4 * size:  # the file, a copy on the target, the one it replaces, and some air
            notes.append(f"{_size(size)} was left out: {_size(room)} are free, and it takes {_size(4 * size)}.")
            continue
        local = _file(lab, size)
        for direction in ("put", "get"):
            outcome = _copy_one(clients, direction, local, effort, lab)
            taken = {label: answers.seconds for label, answers in outcome.items()}
            values[f"{direction} {_size(size)}"] = _medians(taken)
            reference = statistics.median(taken[REFERENCE]) if taken.get(REFERENCE) else None
            rows += [
                [
                    f"{direction} {_size(size)}",
                    client.label,
                    str(len(taken[client.label])),
                    number(statistics.median(taken[client.label]) * MS),
                    quartiles(taken[client.label], MS),
                    number(size / statistics.median(taken[client.label]) / 1e6),
                    _inverse_ratio(statistics.median(taken[client.label]), reference),
                    *outcome[client.label].growth(client),
                ]
                for client in clients
                if taken[client.label]
            ]
        local.unlink()
        for left in lab.files.glob("copy-*"):
            left.unlink()
    head = ["operation", "peer", "n", "median ms", "quartiles", "MB/s", SPEED, "controller grew MiB", "target grew MiB"]
    text = "\n\n".join([table(head, rows), *notes])
    return Section("Files", _with_failures(text, clients), values)


def stream(clients: Sequence[WorkerClient], effort: Effort) -> list[Section]:
    """Much output of one command: to have it, and to look at each of its lines."""
    interleaved(clients, ONCE, _warm_up)
    script = f"yes {'x' * (STREAM_LINE_BYTES - 1)} | head -c {STREAM_BYTES}"
    answers = interleaved(clients, effort, lambda client: client.ask("stream", script=script))
    whole = {label: [answer for answer in given if answer["bytes"] == STREAM_BYTES] for label, given in answers.items()}
    rows: list[list[str]] = []
    values: dict[str, Mapping[str, float]] = {}
    for until, title in (("ended", "is there"), ("read", "and each line read")):
        rates = {label: [STREAM_BYTES / answer[until]["s"] / 1e6 for answer in found] for label, found in whole.items()}
        peaks = {
            label: max(answer[until]["peak_bytes"] for answer in found) / MIB for label, found in whole.items() if found
        }
        medians = _medians(rates)
        values |= {f"stream {until}: MB/s": medians, f"stream {until}: peak MiB": peaks}
        rows += [
            [
                title,
                client.label,
                str(len(rates[client.label])),
                number(medians[client.label]),
                quartiles(rates[client.label]),
                _ratio(medians[client.label], medians.get(REFERENCE)),
                number(peaks[client.label]),
                number(min(answer["before_bytes"] for answer in whole[client.label]) / MIB),
            ]
            for client in clients
            if client.label in medians
        ]
    short = [
        f"{client.label}: not all of the output arrived."
        for client in clients
        if len(whole[client.label]) < len(answers[client.label])
    ]
    head = ["output", "peer", "n", "MB/s", "quartiles", SPEED, "controller's peak MiB", "before MiB"]
    text = "\n\n".join([table(head, rows), *short])
    title = f"{_size(STREAM_BYTES)} of standard output in lines of {STREAM_LINE_BYTES} bytes"
    return [Section(title, _with_failures(text, clients), values)]


def round_trips(clients: Sequence[WorkerClient], effort: Effort, lab: Lab, net: DelayNet) -> list[Section]:
    """Round trips of each operation: what it takes longer over a slow wire, divided by the wire's delay."""
    local = _file(lab, PUT_BYTES)

    def ask(client: WorkerClient) -> Answer | None:
        remote = str(lab.files / f"session-{client.label.strip('@')}")
        back = f"{remote}-back"
        return client.ask(
            "session", local=str(local), remote=remote, back=back, count=effort.count, budget_s=4 * BUDGET_S
        )

    net.set_round_trip(0)
    interleaved(clients, ONCE, ask)
    near = interleaved(clients, effort, ask)
    net.set_round_trip(ROUND_TRIP_S)
    far = interleaved(clients, effort, ask)
    net.set_round_trip(0)  # so that closing does not wait
    values: dict[str, dict[str, float]] = {}
    rows = []
    for step, title in STEPS.items():
        near_s, far_s = _medians(_samples(near, step)), _medians(_samples(far, step))
        found = {label: (far_s[label] - near_s[label]) / ROUND_TRIP_S for label in far_s if label in near_s}
        values[f"round trips: {step}"] = found
        cells = [
            f"{number(found[label])} ({number(near_s[label] * MS)} to {number(far_s[label] * MS)} ms)"
            if label in found
            else ABSENT
            for label in near
        ]
        rows.append([title, *cells])
    text = table(["operation", *near], rows)
    title = f"Round trips (in brackets the median without delay and with {ROUND_TRIP_S * MS:g} ms)"
    return [Section(title, _with_failures(text, clients), values)]


@dataclass(frozen=True, slots=True)
class _Copies:
    """What one peer's copies of one file took."""

    seconds: list[float]
    controller_bytes: int
    target_bytes: int

    def growth(self, client: WorkerClient) -> tuple[str, str]:
        """Cells of the table. With scp both sides are processes that have gone before they could be asked."""
        controller = ABSENT if client.peer.driver == "scp" else number(self.controller_bytes / MIB)
        target = ABSENT if client.peer.server is None else number(self.target_bytes / MIB)
        return controller, target


def _copy_one(
    clients: Sequence[WorkerClient], direction: str, local: Path, effort: Effort, lab: Lab
) -> Mapping[str, _Copies]:
    """Put *local*, or get what was put; each file is compared with *local* afterwards."""

    def ask(client: WorkerClient) -> Answer | None:
        remote = lab.files / f"copy-{client.label.strip('@')}"
        back = lab.files / "copy-back"
        result, source = (remote, local) if direction == "put" else (back, remote)
        result.unlink(missing_ok=True)
        growth = procfs.PeakGrowth(client.peer.server) if client.peer.server else None
        where: dict[str, object] = {"local": str(source), "remote": str(result), "distinct": False}
        if direction == "get":
            where = {"remote": str(source), "local": str(result)}
        answer = client.ask(direction, **where, count=effort.count, budget_s=BUDGET_S)
        if answer is not None:
            answer["target_bytes"] = growth.measured() if growth else 0
            if not filecmp.cmp(local, result, shallow=False):
                client.failure = f"{direction} of {local.stat().st_size} bytes: the copy differs"
                return None
        return answer

    answers = interleaved(clients, effort, ask)
    seconds = _samples(answers, "s")
    return {
        label: _Copies(
            seconds[label],
            max((answer["growth_bytes"] for answer in given), default=0),
            max((answer["target_bytes"] for answer in given), default=0),
        )
        for label, given in answers.items()
    }


def _warm_up(client: WorkerClient) -> Answer | None:
    """A connection, on which `true` has run."""
    return client.ask("connect", count=1, budget_s=BUDGET_S)


def _warm_up_copies(clients: Sequence[WorkerClient], lab: Lab) -> None:
    """Have the peers open what they keep open for copies: @ssh starts its SFTP channel at the first one."""
    local = _file(lab, PUT_BYTES)
    _copy_one(clients, "put", local, ONCE, lab)
    _copy_one(clients, "get", local, ONCE, lab)
    local.unlink()


def _samples(answers: Mapping[str, list[Answer]], key: str) -> dict[str, list[float]]:
    return {label: [value for answer in given for value in answer[key]] for label, given in answers.items()}


def _medians(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {label: statistics.median(values) for label, values in samples.items() if values}


def _times(clients: Sequence[WorkerClient], samples: Mapping[str, Sequence[float]]) -> str:
    medians = _medians(samples)
    rows = [
        [
            client.label,
            str(len(samples[client.label])),
            number(medians[client.label] * MS),
            quartiles(samples[client.label], MS),
            _inverse_ratio(medians[client.label], medians.get(REFERENCE)),
        ]
        for client in clients
        if client.label in medians
    ]
    return _with_failures(table(["peer", "n", "median ms", "quartiles", SPEED], rows), clients)


def _ratio(value: float, reference: float | None) -> str:
    return number(value / reference) if reference else ABSENT


def _inverse_ratio(value: float, reference: float | None) -> str:
    return number(reference / value) if reference else ABSENT


def _with_failures(text: str, clients: Sequence[WorkerClient]) -> str:
    failures = [f"{client.label} failed: {client.failure}" for client in clients if client.failure]
    return "\n\n".join([text, *failures])


def _file(lab: Lab, size: int) -> Path:
    """A file of random bytes."""
    path = lab.files / f"random-{size}"
    with path.open("wb") as file:
        left = size
        while left:
            left -= file.write(os.urandom(min(left, WRITE_BYTES)))
    return path


def _size(count: int) -> str:
    return f"{count // MIB} MiB" if count >= MIB else f"{count // KIB} KiB"
