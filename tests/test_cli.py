"""``commbench`` as people type it: plans, runs, reports, and everything they can mistype."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import stat
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from commbench.samples import load_samples
from commbench.schema import schema
from tests.command import COMMBENCH, Ended, Running, cases, commbench, lines

RUN = ("run", "latency", "-C", "loopback", "-m", "1")
SHORT = (*RUN, "-i", "20", "-x", "2")


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


# ---------------------------------------------------------------------- mistyped


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("run ltency", ["benchmark ltency", "latency, bandwidth"]),
        ("run -C tpc", ["-C tpc", "tcp", "loopback"]),
        ("run -C loopback --scheme zipf", ["--scheme zipf", "uniform, random, skew"]),
        ("run -C loopback --scheme trace:none.csv", ["none.csv", "No such file"]),
        ("run -C loopback --mode binary", ["--mode binary", "serialized"]),
        ("run -C loopback -m 4Q", ["-m/--message-size 4Q", "allowed"]),
        ("run -C loopback -m 64:1", ["-m/--message-size 64:1", "MIN 64", "MAX 1"]),
        ("run -C loopback -m -5", ["-m/--message-size -5", "allowed"]),
        ("run -C loopback -m 99999999T", ["-m/--message-size 99999999T", "too large"]),
        ("run -C loopback -i 0", ["-i/--iterations 0", "1 or more"]),
        ("run -C loopback -x -1", ["-x/--warmup -1", "0 or more"]),
        ("run -C loopback -W 0", ["-W/--window 0", "1 or more"]),
        ("run -C loopback -n 0", ["--ranks 0", "allowed: 1 to"]),
        ("run -C loopback -n 100000", ["--ranks 100000", "allowed: 1 to"]),
        ("run -C loopback -n two", ["--ranks", "'two'", "integer"]),
        ("run -C loopback --repeat -1", ["--repeat -1", "allowed: 1 to"]),
        ("run -C loopback -D 0", ["-D/--duration 0", "above 0"]),
        ("run -C loopback -D 1s -i 5", ["-D/--duration", "-i/--iterations"]),
        ("run -C loopback --warmup-time 1s", ["--warmup-time", "-D/--duration"]),
        ("run -C loopback --timeout soon", ["--timeout soon", "such as 10"]),
        ("run -C loopback --loop rust", ["--loop rust", "auto, native, python"]),
        ("run -C loopback -z 101", ["-z 101", "below 100"]),
        ("run -C loopback -z ,", ["-z ,", "below 100"]),
        ("run -C loopback -o fault", ["-o/--option fault", "KEY=VALUE"]),
        ("run -C loopback -o speed=9", ["-o speed=9", "no such option"]),
        ("run -C loopback --scheme skew --skew-to huge", ["huge", "small, medium, large"]),
        ("run -C loopback --scheme uniform --iovec 0", ["--iovec 0", "1 or more"]),
        ("run -C loopback --scheme uniform --small 1M", ["--small", "1M"]),
        ("run -C loopback --shuffle wildly", ["--shuffle wildly", "blocks, in-order, all"]),
        ("run -C loopback --order-seed -1", ["--order-seed", "-1"]),
        ("run -C loopback --save-samples", ["--save-samples", "--output"]),
        ("run -C loopback --on-exists overwrite", ["--on-exists", "refuse", "number"]),
        ("run --frobnicate", ["--frobnicate"]),
        ("run none.toml", ["none.toml", "No such file"]),
        ("run a.toml b.toml", ["a.toml b.toml", "one job file"]),
        ("run -C tcp -n 1", ["-n/--ranks 1", "tcp", "at least 2"]),
        ("frobnicate", ["frobnicate"]),
        ("report", ["FILES"]),
        ("report none.jsonl", ["none.jsonl", "No such file"]),
        ("report --format xml /dev/null", ["--format xml", "table, csv, json, markdown, osu"]),
    ],
)
def test_a_mistake_is_one_line_naming_flag_value_and_what_is_allowed(
    argv: str, words: list[str]
) -> None:
    commbench(*argv.split()).one_line(2, *words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--interface", "nope0"), ["--interface nope0", "lo (127.0.0.1"]),
        (("--rendezvous", "nowhere"), ["--rendezvous nowhere", "HOST:PORT"]),
        (("--rendezvous", "file:/nowhere"), ["--rendezvous file:/nowhere", "existing folder"]),
        (("--join-timeout", "-1"), ["--join-timeout -1", "above 0"]),
        (("-o", "fault_at=99999999999999999999"), ["-o fault_at=9", "2^63"]),
        (("--bind", "everywhere"), ["--bind everywhere", "core, numa, none"]),
        (("--bind", "0,9999"), ["--bind 0,9999", "9999"]),
        (("-m", "1T"), ["latency of 1T over loopback", "3.00 TiB", "MemAvailable"]),
    ],
)
def test_what_only_a_rank_can_find_is_one_line_too(
    flags: tuple[str, ...], words: list[str]
) -> None:
    commbench(*SHORT, *flags).one_line(2, *words)


def test_the_wrong_key_of_a_job_file_names_the_line(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('[small]\nchannel = "loopback"\n\nmesage-size = "1"\n')
    commbench("run", job).one_line(2, str(job), "line 4", "mesage-size", "message-size")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123")
    token.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        done = commbench(
            *SHORT, "--rendezvous", place, "--token-file", token, "--join-timeout", "2"
        )
    done.one_line(2, f"--rendezvous {place}", "Address already in use")


def test_an_output_file_is_never_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    commbench(*SHORT, "--output", output).ok()
    before = output.read_bytes()
    commbench(*SHORT, "--output", output).one_line(2, f"--output {output}", "never overwritten")
    done = commbench(*SHORT, "--output", output, "--on-exists", "number").ok()
    assert f"writing {output}.1" in done.stderr
    assert output.read_bytes() == before
    assert len(cases(Path(f"{output}.1"))) == 1


@pytest.mark.parametrize("where", [".", "file/below", "a\nb/../c"])
def test_an_output_that_cannot_be_made(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = commbench(*SHORT, "--output", tmp_path / where)
    if done.exit_code:
        done.one_line(2, "--output")


# ---------------------------------------------------------------------- results files


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results file of a real run over three transports, and what it printed beside it."""
    output = tmp_path_factory.mktemp("real") / "x.jsonl"
    done = commbench(
        *("run", "latency,bandwidth", "-C", "loopback,tcp,uds", "-m", "1,1K", "-i", "30"),
        *("-x", "3", "-z", "50,75", "--output", output),
    ).ok()
    output.with_suffix(".txt").write_text(done.stdout)
    return output


def test_every_line_of_a_run_validates(real: Path) -> None:
    validator = Draft202012Validator(schema())
    for line in lines(real):
        assert [problem.message for problem in validator.iter_errors(line)] == []


def test_each_case_says_how_much_memory_each_rank_took(real: Path) -> None:
    for case in lines(real)[1:-1]:
        assert [each > 1 << 20 for each in case["peak_rss_bytes"]] == [True, True]


def test_a_run_ends_with_its_shares_of_time(real: Path) -> None:
    first, *middle, last = lines(real)
    assert (first["kind"], last["kind"], last["cases"]) == ("run", "end", len(middle)) == (
        "run", "end", 12)  # fmt: skip
    assert 0 < last["startup_ns"] < 30e9
    assert 0 < last["measured_share"] <= 1
    assert first["argv"][1:3] == ["run", "latency,bandwidth"]
    assert len(first["hosts"]) == 2


def test_blocks_are_shuffled_and_sizes_ascend(real: Path) -> None:
    done = [(c["case"]["channel"], c["case"]["benchmark"]) for c in cases(real)]
    assert done[::2] == done[1::2]
    assert [c["case"]["nbytes"] for c in cases(real)] == [1, 1024] * 6


def test_the_table_while_running_is_the_table_of_the_report(real: Path) -> None:
    report = commbench("report", real, "-z", "50,75").ok().stdout
    assert sorted(rows(report)) == sorted(rows(real.with_suffix(".txt").read_text()))
    assert "p75" in report


def test_every_format_of_a_report(real: Path) -> None:
    texts = {
        form: commbench("report", real, "--format", form).ok().stdout
        for form in ("csv", "json", "markdown", "osu")
    }
    assert len(list(csv.DictReader(io.StringIO(texts["csv"])))) == 12
    assert len(json.loads(texts["json"])) == 12 or "cases" in json.loads(texts["json"])
    assert texts["markdown"].count("| ") > 12
    assert "# Size" in texts["osu"]


def test_a_picture_from_a_report(real: Path, tmp_path: Path) -> None:
    png = tmp_path / "x.png"
    commbench("report", real, "--png", png).ok()
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: "not a results file\n", ["line 1", "not a commbench results file"]),
        (lambda text: "", ["line 1", "not a commbench results file"]),
        (lambda text: text.replace('"format":1', '"format":7', 1), ["format 7", "newer commbench"]),
        (lambda text: "\n".join(text.split("\n")[1:]), ["line 1", "not a commbench results file"]),
        (lambda text: text.replace("\n", "\n{nonsense\n", 1), ["line 2"]),
        (lambda text: text.replace('"latency_ns"', '"latncy"', 1), ["line 2", "latency_ns"]),
    ],
    ids=["text", "empty", "newer", "headless", "nonsense", "mangled"],
)
def test_a_results_file_that_is_none(
    spoil: object, words: list[str], real: Path, tmp_path: Path
) -> None:
    assert callable(spoil)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(spoil(real.read_text()))
    commbench("report", bad).one_line(2, str(bad), *words)


def test_a_truncated_results_file_is_read_and_said_to_be_cut(real: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl"
    whole = real.read_text().split("\n")
    cut.write_text("\n".join([*whole[:6], whole[6][:40]]))
    done = commbench("report", cut).ok()
    assert len(rows(done.stdout)) == 5
    assert "not complete: the run was killed after 5 cases" in done.stdout + done.stderr


# ---------------------------------------------------------------------- runs


def test_a_dry_run_prints_the_plan_and_measures_nothing(tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    done = commbench("run", "bandwidth", "-C", "loopback", "-m", "1:4", "-W", "8", "-i", "7",
                     "-x", "3", "--dry-run", "--output", output).ok()  # fmt: skip
    assert done.stdout.startswith("# 3 cases in 1 blocks")
    head, *plan = rows(done.stdout)
    assert [row[head.index("size")] for row in plan] == ["1", "2", "4"]
    assert {(row[head.index("window")], row[head.index("iterations")]) for row in plan} == {
        ("8", "7")}  # fmt: skip
    assert not output.exists()


def test_the_shipped_job_shortened(tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    job = Path(__file__).parent.parent / "jobs" / "demo.toml"
    commbench("run", job, "-C", "loopback,tcp", "-i", "3", "-x", "0", "-W", "2", "--output", output
              ).ok()  # fmt: skip
    schemes = {case["case"]["payload"]["scheme"] for case in cases(output)}
    assert schemes == {"contiguous", "uniform", "random", "skew"}
    assert {case["case"]["channel"] for case in cases(output)} == {"loopback", "tcp"}


def test_launches_share_one_file(tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    commbench(*SHORT, "--repeat", "2", "--output", output).ok()
    assert [line["kind"] for line in lines(output)] == ["run", "case", "case", "end"]
    assert [case["launch"] for case in cases(output)] == [0, 1]
    assert lines(output)[-1]["cases"] == 2


def test_samples_are_kept_beside_the_file(tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    commbench(*SHORT, "--save-samples", "--output", output).ok()
    with np.load(tmp_path / "x.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    assert {len(array) for array in arrays.values()} == {20}


def test_percentiles_that_were_asked_for(tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    done = commbench(*SHORT, "-z", "50,99", "--output", output).ok()
    heading = next(line for line in done.stdout.splitlines() if "p50" in line and "size" in line)
    assert "p99" in heading
    assert "p90" not in heading
    (case,) = cases(output)
    assert case["latency_ns"]["p50"] is not None
    assert case["latency_ns"]["p99"] is None  # 20 samples have not 10 beyond it


def test_by_duration(tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    commbench(*RUN, "-D", "0.5s", "--warmup-time", "0.1s", "--output", output).ok()
    (case,) = cases(output)
    assert 0.3e9 < case["elapsed_ns"] < 3e9
    assert case["n"] > 100


@pytest.mark.parametrize(("flags", "share"), [((), 0.5), (("--rtt",), 1.0)])
def test_latency_is_half_of_the_stamped_round_trip_or_all_of_it(
    flags: tuple[str, ...], share: float, tmp_path: Path
) -> None:
    output = tmp_path / "x.jsonl"
    commbench(*RUN, *flags, "--save-samples", "--output", output).ok()
    (case,) = cases(output)
    stamps = load_samples(output, 0)
    median = float(np.median(stamps["end"] - stamps["start"]))
    assert case["estimator"] == ("rtt" if flags else "rtt/2")
    assert case["latency_ns"]["p50"] == pytest.approx(share * median, rel=0.02)


def test_ranks_without_a_part_wait_and_are_named() -> None:
    run = ["run", "latency,message-rate", "-C", "tcp", "-m", "8", "-i", "20", "-x", "1", "-n", "5"]
    ended = commbench(*run)
    ended.ok()
    assert "# latency: ranks 2-4 of 5 take no part" in ended.stderr
    assert "# message-rate: rank 4 of 5 takes no part" in ended.stderr


def test_the_loop_that_was_asked_for(tmp_path: Path) -> None:
    for loop in ("native", "python"):
        output = tmp_path / f"{loop}.jsonl"
        commbench(*SHORT, "--loop", loop, "--output", output).ok()
        assert [case["loop"] for case in cases(output)] == [loop]


def test_channels_says_what_is_usable() -> None:
    done = commbench("channels", "-v").ok()
    assert "loopback   usable" in done.stdout
    assert "-o fault=" in done.stdout
    assert "Traceback" not in done.stdout


HIDE_GRPC = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == "grpc" else find(name, *rest)
"""


def test_a_channel_that_is_not_installed_is_exit_4_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE_GRPC)
    path = {"PYTHONPATH": str(tmp_path)}
    commbench("run", "-C", "grpc", "-m", "1", **path).one_line(4, "channel grpc", "pip install")
    listed = commbench("channels", **path).ok().stdout.splitlines()
    (line,) = (each for each in listed if each.split()[0] == "grpc")
    assert "not usable" in line
    assert "pip install" in line


def test_a_channel_whose_library_is_broken_is_exit_4(tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("raise ImportError('libfoo.so.7: no such file')\n")
    done = commbench("run", "-C", "grpc", "-m", "1", PYTHONPATH=str(tmp_path))
    done.one_line(4, "channel grpc", "libfoo.so.7")


def test_doctor_always_ends_with_a_count() -> None:
    assert commbench("doctor").ok().stdout.splitlines()[-1].startswith("# ")


# ---------------------------------------------------------------------- rude users


@pytest.mark.parametrize("channel", ["loopback", pytest.param("mpi", marks=pytest.mark.mpi)])
def test_a_reader_that_leaves(channel: str, tmp_path: Path) -> None:
    """``commbench run ... | head -1``: the finished cases are in the file all the same."""
    output = tmp_path / "x.jsonl"
    running = Running(
        ("sh", "-c", 'exec 3>&1; { "$@" 3>&-; echo $? >&3; } | head -1 >/dev/null', "sh"),
        *COMMBENCH, "run", "latency", "-C", channel, "-m", "1:256", "-i", "2000", "--output",
        output)  # fmt: skip
    done = running.end()
    assert done.stdout.strip() == "5"
    Ended(5, "", done.stderr, done.elapsed_s).one_line(5, "stdout cannot be written")
    assert cases(output)


def test_a_full_disk_under_stdout() -> None:
    with open("/dev/full", "w") as full:
        running = Running(("sh", "-c", f'"$@" > /proc/{os.getpid()}/fd/{full.fileno()}', "sh"),
                          *COMMBENCH, *SHORT)  # fmt: skip
        running.end().one_line(5, "stdout cannot be written", "No space left")


@pytest.mark.parametrize("closing", [">&-", ">&- 2>&- <&-"])
def test_closed_streams(closing: str, tmp_path: Path) -> None:
    output = tmp_path / "x.jsonl"
    Running(("sh", "-c", f'"$@" {closing}', "sh"), *COMMBENCH, *SHORT, "--output",
            output).end().ok()  # fmt: skip
    assert len(cases(output)) == 1


def test_a_locale_that_knows_no_plus_minus() -> None:
    for env in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}):
        assert rows(commbench(*SHORT, **env).ok().stdout)


def test_no_home_and_a_strange_path(tmp_path: Path) -> None:
    output = tmp_path / "é ü\u202e 'quoted' $(x)" / "ñ.jsonl"
    commbench(*SHORT, "--output", output, HOME="/nowhere", TMPDIR=str(tmp_path)).ok()
    commbench("report", output).ok()
    assert [each.name for each in tmp_path.iterdir()] == [output.parent.name]


def test_results_are_readable_by_their_owner_at_least(real: Path) -> None:
    assert stat.S_IMODE(real.stat().st_mode) & 0o600 == 0o600
