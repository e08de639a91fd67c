"""Reports: golden texts from a fixed file, what other tools read in them, and the picture."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commbench.errors import UsageError
from commbench.histogram import Histogram
from commbench.reports.report import FORMATS, report
from commbench.reports.side_by_side import side_by_side
from commbench.reports.stats import merge_launches, percentile_ns, rate_reached
from commbench.reports.tables import StreamTable, digits, iovec
from commbench.results import Record, ResultWriter, read
from tests.golden.make import PERCENTILES, RUN, bandwidth, golden, header, latency, text

REPORTS = Path(__file__).parent.parent / "reports"


@pytest.mark.parametrize("format", FORMATS)
def test_golden(format: str) -> None:
    """After a change that is meant: ``python -m tests.golden.make --texts``."""
    assert text(format) == golden(format).read_text()


def write(path: Path, cases: list[Record], end: bool = True) -> Path:
    with ResultWriter(path) as writer:
        writer.run(header())
        for record in cases:
            writer.case(record)
        if end:
            writer.end({})
    return path


# ---------------------------------------------------------------- table


def test_the_live_table_is_the_report() -> None:
    file = read(RUN)
    stream, lines = StreamTable(file.run), []
    for record in file.cases:
        header_lines = stream.header_for(record)
        lines += [*([] if header_lines is None else header_lines.split("\n")), stream.row(record)]
    lines += [*side_by_side(file.cases), str(stream.footer())]
    assert report([RUN]).splitlines()[: len(lines)] == lines


def test_columns_stand_under_their_titles() -> None:
    titles, rows, file = "", 0, read(RUN)
    stream = StreamTable(file.run)
    texts = [line for r in file.cases for line in (stream.header_for(r), stream.row(r)) if line]
    for line in "\n".join(texts).splitlines():
        if re.match(r"# +(size) ", line):
            titles = line
        elif line.startswith(" "):
            rows += 1
            ends = [[m.end() for m in re.finditer(r"\S+", text)] for text in (titles, line)]
            assert ends[0][1:] == ends[1]  # without the #
    assert rows == len(file.cases)


def test_channels_stand_beside_each_other() -> None:
    """By size, whatever the order of the run; launches are merged, options told apart."""
    small, large = latency("tcp"), latency("tcp", (1024,))
    records = [latency("mpi", (1024,)), large, small]
    lines = side_by_side([*records, {**records[2], "launch": 1}])
    assert lines[:2] == ["", "# latency, rtt/2: size sweep, 2 ranks: p50 in us"]
    assert lines[2].split() == ["#", "size", "mpi", "tcp"]
    assert [line.split()[1] for line in lines[3:]] == ["64", "1K"]
    assert [len(line.split()) for line in lines[3:]] == [3, 4]
    spin = {**small, "case": {**small["case"], "options": {"wait": "spin"}}}
    assert side_by_side([records[2], spin])[2].split() == ["#", "size", "tcp", "tcp", "wait=spin"]


def test_one_channel_alone_stands_beside_nothing() -> None:
    assert side_by_side([latency(), latency(sizes=(1024,))]) == []


def test_a_percentile_from_few_samples_is_a_dash() -> None:
    stream = StreamTable(header(), (50, 99))
    stream.header_for(latency(n=900))
    assert stream.footer() is None
    assert stream.row(latency(n=900)).split()[-2] == "-"
    assert stream.footer() is not None


def test_a_killed_run_says_so_in_every_format(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", [latency()], end=False)
    for format in ("table", "markdown", "osu"):
        assert "not complete" in report([path], format)
    assert json.loads(report([path], "json"))["runs"][0]["complete"] is False
    assert next(csv.DictReader(io.StringIO(report([path], "csv"))))["run_complete"] == "no"


def test_a_run_killed_before_its_first_case(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", [], end=False)
    for format in FORMATS:
        report([path], format)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "-"),
        (0, "0.000"),
        (9.9994, "9.999"),
        (9.9996, "10.00"),
        (999.96, "1000"),
        (7e6, "7000000"),
    ],
)
def test_digits(value: float | None, expected: str) -> None:
    assert digits(value) == expected


def test_iovec_names_the_buffers() -> None:
    assert iovec(latency(sizes=(10, 1048576, 10), scheme="skew")) == "2x10+1x1M"
    assert iovec(latency(sizes=tuple(range(1, 11)), scheme="skew")) == "10 buffers"


# ---------------------------------------------------------------- other formats


def test_csv_has_the_numbers_of_the_file() -> None:
    rows = list(csv.DictReader(io.StringIO(report([RUN], "csv", percentiles=(50, 99.9)))))
    cases = read(RUN).cases
    assert len(rows) == len(cases)
    for row, record in zip(rows, cases, strict=True):
        times = record["latency_ns"]
        assert row["p50_ns"] == ("" if times["p50"] is None else str(times["p50"]))
        assert row["p99.9_ns"] == ("" if times["p99.9"] is None else str(times["p99.9"]))
        assert float(row["bytes_per_s"]) == record["bytes_per_s"]
        assert "p90_ns" not in row


def test_json_rows_are_typed() -> None:
    rows = json.loads(report([RUN], "json"))["cases"]
    assert rows[0]["p99_ns"] == read(RUN).cases[0]["latency_ns"]["p99"]
    assert rows[0]["validated"] is True and rows[0]["options"] == {}


def test_markdown_is_a_table_per_block() -> None:
    made = report([RUN], "markdown")
    heads = [line for line in made.splitlines() if line.startswith("**")]
    assert len(heads) == len(re.findall(r"^\|-", made, re.MULTILINE)) > 5


def test_osu_rows_are_what_reframe_greps(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", [latency("mpi", (8,)), latency("mpi", (4096,))])
    made = report([path], "osu")
    found = re.search(r"^8\s+(\S+)", made, re.MULTILINE)
    assert found and float(found[1]) == pytest.approx(
        latency("mpi", (8,))["latency_ns"]["mean"] / 1e3, abs=0.005
    )
    assert "MPI Latency Test" in made.splitlines()[0] and not re.search("^8.*Pass", made, re.M)
    assert re.search(r"^ *# *Size *Latency \((.*)\) *$", made, re.MULTILINE)


def test_osu_says_pass_under_c(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", [latency(sizes=(8,), validation="every")])
    assert re.search(r"^8\s+\S+.*Pass$", report([path], "osu"), re.MULTILINE)


def test_osu_bandwidth_is_in_mb_per_second(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", [bandwidth(sizes=(4194304,))])
    made = report([path], "osu")
    found = re.search(r"^4194304\s+(\S+)$", made, re.MULTILINE)
    expected = bandwidth(sizes=(4194304,))["bytes_per_s"] / 1e6
    assert found and float(found[1]) == pytest.approx(expected, abs=0.005)
    assert re.search(r"^ *# *Size *Bandwidth \((.*)\) *$", made, re.MULTILINE)


# ---------------------------------------------------------------- statistics


def test_a_message_rate_counts_messages_and_not_windows(tmp_path: Path) -> None:
    record = bandwidth("mpi", (8,), "message-rate", n=1_200)
    record["ops_per_s"] /= record["case"]["window"]  # as a run has it: an operation is a window
    rate = record["messages"] / record["elapsed_ns"] * 1e9
    path = write(tmp_path / "run.jsonl", [record])
    assert f" {rate:.0f} " in report([path], "table")
    assert f" {rate:.2f}" in report([path], "osu")


def test_p99_of_a_bandwidth_is_a_bad_case() -> None:
    record = bandwidth(n=2000)
    half, most = rate_reached(record, 50), rate_reached(record, 99)
    assert half and most and most < half
    slowest = record["nbytes_total"] / record["n"] / record["latency_ns"]["max"] * 1e9
    assert slowest < most


def test_percentiles_that_the_record_has_not() -> None:
    record = latency()
    histogram = Histogram.from_json(record["histogram"])
    assert percentile_ns(record, 75) == histogram.quantile(0.75)
    assert percentile_ns(record, 99.99) is None


def test_launches_of_one_case_are_merged() -> None:
    a, b, other = latency(n=600), latency(n=700, launch=1), latency(sizes=(65,))
    merged, second = merge_launches([a, b, other])
    assert second == other
    assert merged["n"] == 1300 and merged["elapsed_ns"] == a["elapsed_ns"] + b["elapsed_ns"]
    total = (a["nbytes_total"] + b["nbytes_total"]) * 1e9 / merged["elapsed_ns"]
    assert merged["bytes_per_s"] == pytest.approx(total)
    assert merged["latency_ns"]["p99"] is not None and a["latency_ns"]["p99"] is None


# ---------------------------------------------------------------- the picture


def test_png(tmp_path: Path) -> None:
    report([RUN], png=tmp_path / "a.png")
    image = (tmp_path / "a.png").read_bytes()
    assert image.startswith(b"\x89PNG") and len(image) > 20_000


def test_the_picture_shows_every_channel_benchmark_and_size(tmp_path: Path) -> None:
    report([RUN], png=tmp_path / "a.svg")
    drawn = re.sub(r"<!--|-->", "", (tmp_path / "a.svg").read_text())
    for word in ("tcp", "mpi", "grpc", "latency", "bandwidth", "message-rate", "1 KiB", "skew"):
        assert word in drawn, word


def test_a_picture_of_one_case(tmp_path: Path) -> None:
    for at, record in enumerate((latency(n=5), latency(sizes=(0,)), bandwidth(n=1))):
        path = write(tmp_path / f"{at}.jsonl", [record])
        report([path], png=tmp_path / f"{at}.png")


def test_too_few_samples_are_said_and_not_replaced_by_a_mean(tmp_path: Path) -> None:
    report([write(tmp_path / "few.jsonl", [latency(n=5)])], png=tmp_path / "a.svg")
    assert "too few samples for a median" in (tmp_path / "a.svg").read_text()


def test_runs_are_curves_of_their_own(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{each}.jsonl", [latency(n=500)]) for each in ("old", "new")]
    report(paths, png=tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert "old.jsonl" in drawn and "new.jsonl" in drawn


def test_a_picture_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--png .*\.png, \.svg, \.pdf"):
        report([RUN], png=tmp_path / "a.gif")
    with pytest.raises(UsageError, match=r"--png .*No such file"):
        report([RUN], png=tmp_path / "missing" / "a.png")
    with pytest.raises(UsageError, match="no finished case"):
        report([write(tmp_path / "empty.jsonl", [])], png=tmp_path / "a.png")


def test_without_matplotlib_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install 'commbench\[plot\]'"):
        report([RUN], png=tmp_path / "a.png")


# ---------------------------------------------------------------- the door


def test_an_unknown_format_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--format xml: allowed: table, csv"):
        report([RUN], "xml")


def test_reports_import_no_channel_and_no_harness() -> None:
    for path in REPORTS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [n for n in names if re.search(r"harness|channels|_native|benchmarks", n)], (
                path
            )


def test_a_text_report_loads_no_channel_no_loop_and_no_plot_library() -> None:
    script = (
        "import sys; from commbench.reports.report import report; report([sys.argv[1]]);"
        "print([m for m in sys.modules if m.startswith(('matplotlib', 'scipy', 'mpi4py', 'grpc',"
        " 'commbench.harness', 'commbench.channels', 'commbench._native'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(RUN)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_golden_percentiles_are_asked_for() -> None:
    assert set(PERCENTILES) <= set(FORMATS)
