"""The documentation says what the program does: flags, commands, links, tables, code."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from commbench.benchmarks import BENCHMARKS
from commbench.cli import cli
from commbench.errors import CommbenchError
from commbench.jobs import SETTINGS, make_plan
from commbench.registry import BUILT_IN, load
from commbench.reports.report import FORMATS
from commbench.schema import schema

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
LAUNCHER = re.compile(r"(?:mpirun|mpiexec|srun)(?: -\w+ \w+)+ (?=commbench )")


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


EVERYTHING = "\n".join(each.read_text(encoding="utf-8") for each in PAGES)


def blocks(text: str, language: str) -> Iterator[tuple[str, str]]:
    """Each code block with the mark (an HTML comment) on the line before it, or ""."""
    pattern = rf"(?:<!-- ([^\n]+) -->\n)?```{language}\n(.*?)```"
    for match in re.finditer(pattern, text, re.DOTALL):
        yield match[1] or "", match[2]


def commands() -> list[tuple[str, str]]:
    """(page, command) of every command of ours in a shell block."""
    return [
        (each.name, LAUNCHER.sub("", line))
        for each in PAGES
        for _, block in blocks(each.read_text(encoding="utf-8"), "sh")
        for line in block.replace("\\\n", "").splitlines()
        if LAUNCHER.sub("", line).startswith("commbench ")
    ]


# ---------------------------------------------------------------------- commands and flags


def options() -> list[tuple[str, str]]:
    """(command, flag) of everything that ``--help`` shows."""
    flags = [
        (name, max(parameter.opts, key=len))
        for name, command in cli.commands.items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
    ]
    return [*flags, *(("", name) for name in cli.commands)]


@pytest.mark.parametrize(("command", "flag"), options())
def test_is_documented(command: str, flag: str) -> None:
    wanted = flag if command else f"commbench {flag}"
    text = page("docs/flags.md") if flag.startswith("-") else EVERYTHING
    assert re.search(rf"(?<![\w-]){re.escape(wanted)}(?![\w-])", text), wanted


@pytest.mark.parametrize(("where", "line"), commands())
def test_a_documented_command_parses(
    where: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``run`` also makes its plan; the others are parsed and not run."""
    words = shlex.split(line, comments=True)[1:]
    monkeypatch.chdir(ROOT)
    if words[0] != "run":
        command = cli.commands[words[0]]
        assert command.make_context(words[0], words[1:])
        return
    result = CliRunner().invoke(cli, [*words, "--dry-run"])
    assert not isinstance(result.exception, CommbenchError), str(result.exception)
    assert result.exit_code == 0, result.output
    assert " cases in " in result.output


def test_there_are_commands_to_parse() -> None:
    pages = {where for where, _ in commands()}
    assert {"README.md", "launching.md", "channels.md"} <= pages
    assert len(commands()) > 15


@pytest.mark.parametrize(
    ("mark", "block"),
    [
        each
        for path in PAGES
        for each in blocks(path.read_text("utf-8"), "sh")
        if each[0].startswith("exit: ")
    ],
)
def test_an_exit_code_that_is_promised(mark: str, block: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "commbench", *shlex.split(block)[1:]]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == int(mark.removeprefix("exit: ")), ran.stderr


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"\bmake ([a-z-]+)\b", page("README.md"))))
)
def test_a_make_target_is_there(target: str) -> None:
    assert re.search(rf"^{target}:", page("Makefile"), re.MULTILINE)


def test_every_make_target_is_documented() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", page("Makefile"), re.MULTILINE)
    assert phony is not None
    inner = {"all", "system-packages"}
    for target in set(phony[1].split()) - inner:
        assert f"make {target}" in EVERYTHING, target


@pytest.mark.parametrize(
    "block", [block for path in PAGES for _, block in blocks(path.read_text("utf-8"), "toml")]
)
def test_a_job_file_is_one(block: str, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(block)
    plan = make_plan({}, job)
    assert plan.blocks(load, ranks=2)


def test_every_key_of_a_job_file_is_documented() -> None:
    for key in set(SETTINGS) - {"benchmark"}:
        assert f"`--{key}`" in page("docs/flags.md"), key


# ---------------------------------------------------------------------- code


@pytest.mark.parametrize(
    "block",
    [
        block
        for path in PAGES
        for mark, block in blocks(path.read_text("utf-8"), "python")
        if mark == "run: reads first.jsonl"
    ],
)
def test_code_runs(block: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "golden" / "run.jsonl", tmp_path / "first.jsonl")
    ran = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout


def test_six_lines() -> None:
    """As the README promises."""
    (block,) = [block for mark, block in blocks(page("README.md"), "python") if mark]
    assert len([line for line in block.splitlines() if line]) == 6
    assert block in page("docs/results.md")


# ---------------------------------------------------------------------- links


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def links() -> list[tuple[Path, str]]:
    return [
        (each, target)
        for each in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", each.read_text(encoding="utf-8"))
        if not target.startswith(("http://", "https://"))
    ]


@pytest.mark.parametrize(
    ("path", "target"), links(), ids=[f"{path.name}->{target}" for path, target in links()]
)
def test_a_link_leads_somewhere(path: Path, target: str) -> None:
    name, _, anchor = target.partition("#")
    file = (path.parent / name).resolve() if name else path
    assert file.exists(), f"{path.name}: {target}"
    assert file.is_relative_to(ROOT.resolve()), f"{path.name}: {target} leaves the repository"
    if anchor:
        assert anchor in anchors(file.read_text(encoding="utf-8")), f"{path.name}: {target}"


def test_every_page_is_linked_from_the_readme() -> None:
    targets = {(path.parent / target).resolve() for path, target in links() if path.parent == ROOT}
    assert {each.resolve() for each in PAGES if each.name != "README.md"} <= targets


# ---------------------------------------------------------------------- tables


def rows(text: str) -> set[str]:
    """Names in backticks in the first column of a table."""
    first = re.findall(r"^\|([^|]+)\|", text, re.MULTILINE)
    return {name for cell in first for name in re.findall(r"`([^`]+)`", cell)}


def test_every_channel_and_benchmark_is_in_the_tables() -> None:
    assert {*BUILT_IN, *BENCHMARKS} <= rows(page("README.md"))
    assert set(BUILT_IN) <= rows(page("docs/channels.md"))
    assert set(FORMATS) <= set(re.findall(r"`(\w+)`", page("README.md")))


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_option_of_a_channel_is_documented(name: str) -> None:
    text = page("docs/channels.md")
    section = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    if "Options as `tcp`" in section[1]:
        assert load(name).options == load("tcp").options
        return
    for option in load(name).own_options():
        named = f"`{option}`" in section[1] or f"-o {option}=" in section[1]
        assert named, f"{name}: {option}"


@pytest.mark.parametrize("kind", ["run", "case", "end", "case_key", "latency_ns"])
def test_every_field_of_a_results_file_is_documented(kind: str) -> None:
    text = page("docs/results.md")
    for field in schema()["$defs"][kind]["properties"]:
        assert f"`{field}`" in text or f'"{field}"' in text, f"{kind}: {field}"


@pytest.mark.parametrize("name", ["README.md", "docs/launching.md"])
def test_exit_codes_are_those_of_the_errors(name: str) -> None:
    table = re.search(r"^\| (?:exit )?code \| meaning \|\n(.*?)\n\n", page(name), re.M | re.S)
    assert table is not None
    codes = {int(code) for code in re.findall(r"^\| (\d) \|", table[1], re.MULTILINE)}
    classes = [CommbenchError, *CommbenchError.__subclasses__()]
    assert {each.exit_code for each in classes} <= codes
    assert codes == set(range(6))


def test_the_output_in_the_readme_is_of_the_command_above_it() -> None:
    """Its header lines are those that the command of the README makes."""
    shown = re.findall(r"^# commbench \S+  (\S+)  channel=(\S+)", page("README.md"), re.MULTILINE)
    (line,) = [line for where, line in commands() if where == "README.md" and "--in-order" in line]
    names, channels = shlex.split(line)[2].split(","), shlex.split(line)[4].split(",")
    assert shown == [(name, channel) for channel in channels for name in names]
