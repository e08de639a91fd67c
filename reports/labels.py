"""The words of a picture: what its panels, curves and ticks are called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from commbench.record import Record
from commbench.reports.stats import is_rate
from commbench.reports.tables import is_contiguous, where
from commbench.results import ResultFile
from commbench.units import format_memory, format_size

MESSAGES = "messages/s"


def tick(nbytes: int) -> str:
    """A size on an axis: ``64 B``, ``4 KiB``."""
    text = format_size(nbytes)
    return f"{text[:-1]} {text[-1]}iB" if text[-1].isalpha() else f"{text} B"


def heading(files: Sequence[ResultFile]) -> str:
    runs = dict.fromkeys(f"commbench {f.run['commbench']}, {where(f.run)}" for f in files)
    notes = [file.note for file in files if file.note]
    return "\n".join(["; ".join(runs), *notes])


def panel_title(record: Record) -> str:
    case = record["case"]
    kind = "size sweep" if is_contiguous(record) else "payload schemes"
    window = f", window {case['window']}" if is_rate(record) else f", {record['estimator']}"
    return f"{case['benchmark']}{window}: {kind}"


def y_label(record: Record) -> str:
    if is_message_rate(record):
        return MESSAGES
    return "bandwidth [MB/s]" if is_rate(record) else "latency [us]"


def curve_labels(records: Sequence[tuple[str, Record]]) -> dict[int, str]:
    """A name of each record's curve: channel, loop, and what tells curves of a panel apart.

    ``records``: each with the file that it is from; files are never merged into one curve.
    """
    facts = {id(record): _facts(record, path) for path, record in records}
    panels = grouped((panel_title(r) + r["case"]["channel"], r) for _, r in records)
    labels = {}
    for members in panels.values():
        columns = zip(*(facts[id(record)] for record in members), strict=True)
        differs = [at for at, values in enumerate(columns) if len(set(values)) > 1]
        for record in members:
            parts = [facts[id(record)][at] for at in differs]
            name = f"{record['case']['channel']} ({record['loop']} loop)"
            labels[id(record)] = " ".join(part for part in (name, *parts) if part)
    return labels


def _facts(record: Record, path: str) -> tuple[str, ...]:
    """What may differ between two curves of one channel, in words; empty: the usual."""
    case = record["case"]
    return (
        case["mode"] if case["mode"] != "non-serialized" else "",
        " ".join(f"{name}={value}" for name, value in sorted(case["options"].items())),
        f"{case['ranks']} ranks",
        "acked" if record["delivery"] == "acked" else "",
        "-c" if record["validation"] == "every" else "",
        "cpus " + ",".join(map(str, record["affinity"])),
        path,
    )


def acked(records: Iterable[Record]) -> str:
    """Which channels of a panel answer every message, which is not what the others do."""
    names = dict.fromkeys(r["case"]["channel"] for r in records if r["delivery"] == "acked")
    return f" ({', '.join(names)}: every message acked)" if names else ""


def category(record: Record) -> str:
    return f"{record['case']['payload']['scheme']}\n{format_memory(record['case']['nbytes'])}"


def is_message_rate(record: Record) -> bool:
    return bool(record["case"]["benchmark"] == "message-rate")


def grouped(pairs: Iterable[tuple[str, Record]]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for name, record in pairs:
        groups.setdefault(name, []).append(record)
    return groups
