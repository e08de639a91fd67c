"""The results file: written, checked against its schema, read again whole or damaged."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from commbench.errors import CommbenchError, UsageError
from commbench.histogram import Histogram
from commbench.record import parse_percentiles, percentile_name
from commbench.results import (
    Measured,
    Record,
    ResultWriter,
    compare_key,
    halved,
    make_case_record,
    read,
)
from commbench.samples import load_samples, samples_path
from commbench.schema import mismatch, schema
from tests.golden.make import bandwidth, fields, header, latency, name, records

VALIDATOR = jsonschema.Draft202012Validator(schema())


def write(path: Path, cases: list[Record], end: bool = True) -> None:
    with ResultWriter(path) as writer:
        writer.run(header())
        for record in cases:
            writer.case(record)
        if end:
            writer.end({})


# ---------------------------------------------------------------- schema


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_every_line_written_validates(tmp_path: Path) -> None:
    write(tmp_path / "run.jsonl", records())
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert len(lines) == len(records()) + 2
    for line in lines:
        VALIDATOR.validate(line)
        assert mismatch(line["kind"], line) is None


def _set(*path: str, value: Any) -> Callable[[Record], None]:
    def change(record: Record) -> None:
        for step in path[:-1]:
            record = record[step]
        record[path[-1]] = value

    return change


MANGLED: dict[str, Callable[[Record], Any]] = {
    "no n": lambda r: r.pop("n"),
    "no p99": lambda r: r["latency_ns"].pop("p99"),
    "no seed": lambda r: r["case"]["payload"].pop("seed"),
    "negative n": _set("n", value=-1),
    "text n": _set("n", value="10"),
    "truth n": _set("n", value=True),
    "loop": _set("loop", value="fast"),
    "kind": _set("kind", value="cases"),
    "unit": _set("unit", value="us"),
    "size": _set("case", "payload", "sizes", value=[1.5]),
    "interval": _set("latency_ns", "p50_ci", value=[1]),
    "case": _set("case", value=None),
    "sub_bits": _set("histogram", "sub_bits", value=5),
    "warnings": _set("warnings", value=[1]),
}


@pytest.mark.parametrize("how", MANGLED)
def test_a_mangled_case_does_not_validate_and_is_not_read(how: str, tmp_path: Path) -> None:
    record = copy.deepcopy(latency())
    MANGLED[how](record)
    assert list(VALIDATOR.iter_errors(record))
    path = tmp_path / "run.jsonl"
    write(path, [])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], json.dumps(record), lines[1]]) + "\n")
    with pytest.raises(UsageError, match=r"run\.jsonl: line 2: "):
        read(path)


@pytest.mark.parametrize("extra", [{"latency": 1}, {"latency_ns": {"p100": 1}}])
def test_a_misspelt_field_does_not_validate(extra: Record) -> None:
    record = latency()
    record |= {key: record.get(key, {}) | value for key, value in extra.items() if value != 1}
    record |= {key: value for key, value in extra.items() if value == 1}
    assert list(VALIDATOR.iter_errors(record))


# ---------------------------------------------------------------- statistics


def test_statistics_of_a_case() -> None:
    samples = np.arange(1, 1001, dtype=np.int64)
    histogram = Histogram()
    histogram.add(samples)
    measured = Measured(histogram, 2_000_000, operations=1000, messages=2000, nbytes=64_000)
    case = name("latency", "tcp", [32], "contiguous", 1)
    record = make_case_record(case, measured, percentiles=(99.99, 25), **fields())
    times = record["latency_ns"]
    assert (times["min"], times["mean"], times["max"]) == (1, 500.5, 1000)
    assert times["p25"] == 250 and times["p50"] == pytest.approx(500, rel=0.01)
    assert times["p99"] == pytest.approx(990, rel=0.01)
    assert times["p99.9"] is None and times["p99.99"] is None
    assert times["p50_ci"][0] <= 500 <= times["p50_ci"][1]
    assert (record["bytes_per_s"], record["ops_per_s"]) == (32e6, 5e5)
    VALIDATOR.validate(record)


def test_nothing_measured_is_null_and_not_zero() -> None:
    record = make_case_record(
        name("latency", "tcp", [0], "contiguous", 1), Measured(Histogram(), 0, 0, 0, 0), **fields()
    )
    assert record["bytes_per_s"] is None and record["latency_ns"]["mean"] is None
    VALIDATOR.validate(record)


def test_halves_are_rounded_without_bias() -> None:
    rtt = np.arange(0, 4000, dtype=np.int64)
    assert np.array_equal(halved(rtt), np.rint(rtt / 2).astype(np.int64))
    assert int(halved(rtt[:-3]).sum()) * 2 == pytest.approx(int(rtt[:-3].sum()), rel=1e-6)


def test_percentiles_as_flags() -> None:
    assert parse_percentiles("99.9, 50,99") == (50, 99, 99.9)
    assert percentile_name(99.99) == "p99.99" and percentile_name(50.0) == "p50"
    for bad in ("", "0", "100", "-1", "50,,99", "p99", "1e1", "nan"):
        with pytest.raises(UsageError, match=r"^-z .*above 0 and below 100"):
            parse_percentiles(bad)


def test_the_compare_key_leaves_out_what_each_launch_has_anew() -> None:
    def launch(port: int, mask: str = "0") -> Record:
        info = {"address": f"10.0.0.1:{port}", "mtu": 1500}
        return latency(affinity=[mask, "1"], channel_info=info)

    first = compare_key(launch(5000))
    assert compare_key(launch(6000)) == first
    assert compare_key(launch(5000, mask="0-1")) != first


def test_the_compare_key_has_all_that_must_match() -> None:
    same, other = compare_key(latency()), compare_key(latency(order=5, launch=2, setup_ns=1))
    assert same == other and same["case.channel"] == '"tcp"'
    changes: list[Record] = [{"loop": "python"}, {"validation": "every"}, {"affinity": ["0", "0"]}]
    changes += [{"delivery": "acked"}, {"estimator": "rtt"}, {"channel_info": {"mtu": 9000}}]
    for change in changes:
        assert compare_key(latency(**change)) != same
    assert compare_key(latency(sizes=(32, 32))) != same


# ---------------------------------------------------------------- writing


def test_written_and_read_again(tmp_path: Path) -> None:
    write(tmp_path / "new" / "run.jsonl", [latency(), bandwidth()])
    file = read(tmp_path / "new" / "run.jsonl")
    assert file.complete and file.note is None
    assert file.run["format"] == 1 and file.end == {"kind": "end", "cases": 2}
    assert list(file.cases) == [latency(), bandwidth()]


def test_an_existing_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"--output .*run\.jsonl.*never overwritten"):
        ResultWriter(path)
    with ResultWriter(path, "number") as first, ResultWriter(path, "number") as second:
        assert [each.path.name for each in (first, second)] == ["run.jsonl.1", "run.jsonl.2"]
    assert path.read_text() == "mine"


def test_stale_samples_are_not_added_to(tmp_path: Path) -> None:
    (tmp_path / "run.npz").write_text("mine")
    with pytest.raises(UsageError, match="npz"):
        ResultWriter(tmp_path / "run.jsonl")


def test_a_second_launch_goes_on_with_the_file(tmp_path: Path) -> None:
    path, stamps = tmp_path / "run.jsonl", np.arange(4, dtype=np.int64)
    write(path, [latency()], end=False)
    with ResultWriter.reopen(path) as writer:
        writer.save_samples(0, stamps, stamps + 1, None)
        writer.case(latency(launch=1))
        writer.end({})
    assert [record["launch"] for record in read(path).cases] == [0, 1]
    assert read(path).end == {"kind": "end", "cases": 2}
    assert load_samples(path, 1)["end"].tolist() == [1, 2, 3, 4]


def test_a_file_that_cannot_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write(path, [latency()])
    with pytest.raises(UsageError, match="its run has ended"):
        ResultWriter.reopen(path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2])[:-10])
    with pytest.raises(UsageError, match="its last line is cut off"):
        ResultWriter.reopen(path)


def test_an_impossible_path_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for on_exists in ("refuse", "number"):
        with pytest.raises(UsageError, match="no folder for it"):
            ResultWriter(tmp_path / "file" / "run.jsonl", on_exists)
    with pytest.raises(UsageError, match="cannot be created: File name too long"):
        ResultWriter(tmp_path / ("x" * 300))


def test_a_full_disk_is_one_clear_line() -> None:
    with pytest.raises(UsageError, match="exists"):
        ResultWriter("/dev/full")
    writer = ResultWriter.__new__(ResultWriter)
    writer.path = Path("/dev/full")
    writer._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(CommbenchError, match=rf"/dev/full: {os.strerror(errno.ENOSPC)}"):
        writer.run(header())
    writer.close()  # says nothing more
    assert writer._file.closed


def test_no_number_that_is_not_json(tmp_path: Path) -> None:
    with ResultWriter(tmp_path / "run.jsonl") as writer, pytest.raises(ValueError, match="JSON"):
        writer.run({**header(), "share": float("nan")})


def test_a_killed_run_keeps_its_cases_and_samples(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    script = """if True:
        import os, signal, sys
        import numpy as np
        from tests.golden.make import header, latency
        from commbench.results import ResultWriter
        writer = ResultWriter(sys.argv[1])
        writer.run(header())
        writer.save_samples(0, np.arange(3), np.arange(3) + 5, None)
        writer.case(latency())
        writer._file.write('{"kind":"case","ca')
        writer._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=Path(__file__).parent.parent, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    file = read(path)
    assert list(file.cases) == [latency()]
    assert not file.complete and file.note is not None and "not complete" in file.note
    assert load_samples(path, 0)["end"].tolist() == [5, 6, 7]


# ---------------------------------------------------------------- samples


def test_samples_of_several_blocks_and_cases(tmp_path: Path) -> None:
    stamps = np.arange(40, dtype=np.int64)
    with ResultWriter(tmp_path / "run.jsonl") as writer:
        for block in range(12):  # more than ten: blocks are in the order of their number
            writer.save_samples(3, stamps + 100 * block, stamps + 7, stamps)
        writer.save_samples(13, stamps, stamps, None)
    samples = load_samples(writer.path, 3)
    assert sorted(samples) == ["end", "intended", "start"]
    assert np.array_equal(samples["start"].reshape(12, 40)[:, 0], 100 * np.arange(12))
    assert sorted(load_samples(writer.path, 13)) == ["end", "start"]
    with pytest.raises(UsageError, match=r"no samples of case 4"):
        load_samples(writer.path, 4)
    with np.load(samples_path(writer.path)) as archive:
        assert archive["case13_block0_end"].dtype == np.int64


@pytest.mark.parametrize("content", [None, b"", b"PK nonsense"])
def test_samples_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"run\.npz: no readable samples"):
        load_samples(tmp_path / "run.jsonl", 0)


# ---------------------------------------------------------------- reading damaged files


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    write(tmp_path / "good.jsonl", [latency(), bandwidth()])
    return (tmp_path / "good.jsonl").read_text().splitlines()


def _rejected(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UsageError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def test_wherever_the_file_is_cut_it_is_read_or_refused_clearly(
    tmp_path: Path, lines: list[str]
) -> None:
    whole = "\n".join(lines) + "\n"
    path = tmp_path / "cut.jsonl"
    ends = [len("\n".join(lines[: count + 1])) for count in range(len(lines))]
    for at in sorted(
        {*range(0, len(whole), 97), *ends, *(end + 1 for end in ends), len(whole) - 2}
    ):
        path.write_text(whole[:at])
        if at < ends[0]:
            assert "line 1" in _rejected(tmp_path, whole[:at])
            continue
        file = read(path)
        assert len(file.cases) == sum(at >= end for end in ends[1:-1])
        assert file.complete == (at >= ends[-1])


def test_a_newer_format_names_both_numbers(tmp_path: Path, lines: list[str]) -> None:
    newer = lines[0].replace('"format":1', '"format":7')
    message = _rejected(tmp_path, newer + "\n")
    assert "format 7" in message and "up to format 1" in message
    assert "unknown" in _rejected(tmp_path, lines[0].replace('"format":1', '"format":"x"'))
    assert "unknown" in _rejected(tmp_path, lines[0].replace('"format":1,', ""))


def test_what_is_not_ours_names_the_line(tmp_path: Path, lines: list[str]) -> None:
    assert "line 1" in _rejected(tmp_path, "size latency\n1 2\n")
    assert "line 1" in _rejected(tmp_path, '{"kind":"case"}\n')
    assert "line 1" in _rejected(tmp_path, "[1]\n")
    assert "line 1" in _rejected(tmp_path, "[" * 100_000)
    assert "line 1" in _rejected(tmp_path, "")
    assert "not text" in _rejected(tmp_path, b"\xff\xfe\x00")
    assert "line 3" in _rejected(tmp_path, "\n".join([*lines[:2], "oops", lines[3], ""]))
    assert "line 3" in _rejected(tmp_path, "\n".join([*lines[:2], '{"kind":"odd"}', ""]))
    assert "line 5" in _rejected(tmp_path, "\n".join([*lines, lines[1], ""]))
    assert "line 1: run.hosts is missing" in _rejected(
        tmp_path,
        json.dumps(
            {key: value for key, value in header().items() if key != "hosts"}
            | {"kind": "run", "format": 1}
        ),
    )


def test_a_number_that_is_not_json_is_refused(tmp_path: Path, lines: list[str]) -> None:
    record = latency()
    record["latency_ns"]["mean"] = float("nan")
    assert "line 2" in _rejected(tmp_path, "\n".join([lines[0], json.dumps(record), ""]))


def test_a_histogram_that_contradicts_itself_is_refused(tmp_path: Path, lines: list[str]) -> None:
    record = latency()
    record["histogram"]["count"][0] += 1
    assert "contradict" in _rejected(tmp_path, "\n".join([lines[0], json.dumps(record), ""]))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read(tmp_path / "missing.jsonl")
    with pytest.raises(UsageError, match="Is a directory"):
        read(tmp_path)


def test_a_run_that_failed_says_so(tmp_path: Path) -> None:
    with ResultWriter(tmp_path / "run.jsonl") as writer:
        writer.run(header())
        writer.end({"error": "rank 1 on node02 is gone"})
    file = read(tmp_path / "run.jsonl")
    assert file.complete and file.note is not None and "rank 1 on node02 is gone" in file.note
