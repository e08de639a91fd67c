import json
from pathlib import Path

import pytest

from commbench.harness.doctor import examine, warnings
from commbench.harness.finding import Finding

HEALTHY = json.loads((Path(__file__).parent / "hosts/infiniband.json").read_text())
CPU = "sys/devices/system/cpu"
CLOCK = "sys/devices/system/clocksource/clocksource0/current_clocksource"


def host(root: Path, changes: dict[str, str]) -> Path:
    """The healthy node with some files changed."""
    for path, content in {**HEALTHY, **changes}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return root


def allowed(cpus: str) -> dict[str, str]:
    return {"proc/self/status": f"Name:\tx\nCpus_allowed_list:\t{cpus}\n"}


def limits(memlock: int) -> dict[str, str]:
    return {"proc/self/limits": f"Max locked memory         {memlock}   {memlock}   bytes\n"}


def test_a_healthy_host_has_nothing(tmp_path: Path) -> None:
    root = host(tmp_path, {})
    assert examine(root=root) == []
    assert examine(local_ranks=8, interfaces=("ib0",), root=root) == []


CASES: list[tuple[str, str, dict[str, str], str]] = [
    ("governor", "warning", {f"{CPU}/cpu3/cpufreq/scaling_governor": "powersave\n"}, "powersave"),
    ("turbo", "note", {f"{CPU}/intel_pstate/no_turbo": "0\n"}, "turbo is on"),
    ("quota", "warning", {"sys/fs/cgroup/slurm/job_17/cpu.max": "150000 100000\n"}, "1.5 CPUs"),
    ("load", "warning", {"proc/loadavg": "7.50 6.00 5.00 9/900 5000\n"}, "7.50 on 8 CPUs"),
    ("mask", "note", allowed("4-7"), "only CPUs 4-7 of 0-7"),
    ("idle", "note", {f"{CPU}/cpu0/cpuidle/state3/latency": "133\n"}, "waking takes 133 us"),
    ("clock", "warning", {CLOCK: "hpet\n"}, "clock source is hpet"),
    ("virtual", "note", {"sys/hypervisor/type": "xen\n"}, "virtual machine (xen)"),
    ("memlock", "warning", limits(65536), "only 64.0 KiB may be locked"),
    ("swap", "note", {"proc/meminfo": "SwapTotal: 2048 kB\nSwapFree: 1024 kB\n"}, "1.00 MiB"),
    ("sockets", "note", {"proc/sys/net/core/rmem_max": "212992\n"}, "net.core.rmem_max is 208"),
    ("ipoib", "note", {"sys/class/net/ib0/mode": "datagram\n"}, "ib0 is IPoIB in datagram mode"),
    (
        "hugepages",
        "note",
        {"sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never\n"},
        "huge pages are always used",
    ),
    (
        "link",
        "note",
        {"sys/class/infiniband/mlx5_0/ports/1/state": "1: DOWN\n"},
        "link down: mlx5_0 port 1",
    ),
    (
        "smt",
        "note",
        {f"{CPU}/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}\n" for n in range(8)},
        "cores run two threads",
    ),
]


@pytest.mark.parametrize(("check", "severity", "changes", "what"), CASES)
def test_one_thing_wrong_is_one_finding(
    tmp_path: Path, check: str, severity: str, changes: dict[str, str], what: str
) -> None:
    (finding,) = examine(root=host(tmp_path, changes))
    assert (finding.check, finding.severity) == (check, severity)
    assert what in finding.what
    assert finding.why and finding.remedy and "\n" not in finding.line


def checks(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.severity for finding in findings}


def test_too_few_cores(tmp_path: Path) -> None:
    root = host(tmp_path, {})
    found = examine(local_ranks=9, root=root)
    assert checks(found) == {"cores": "warning"}
    assert "9 ranks on 8 allowed CPU(s) (0-7)" in found[0].what


def test_two_ranks_on_one_core(tmp_path: Path) -> None:
    pair = {f"{CPU}/cpu{n}/topology/thread_siblings_list": "0-1\n" for n in (0, 1)}
    found = examine(root=host(tmp_path, {**pair, **allowed("0-1")}))
    assert checks(found) == {"cores": "warning", "mask": "note", "smt": "note"}
    assert "2 ranks share 1 core(s)" in found[0].what


def test_siblings_outside_the_mask_do_not_count(tmp_path: Path) -> None:
    pairs = {
        f"{CPU}/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}\n" for n in range(8)
    }
    assert checks(examine(root=host(tmp_path, {**pairs, **allowed("0-3")}))) == {"mask": "note"}


def test_no_pinning(tmp_path: Path) -> None:
    assert checks(examine(bind="none", root=host(tmp_path, {}))) == {"pinning": "warning"}


def test_a_named_interface_that_is_down_is_a_warning(tmp_path: Path) -> None:
    down = {"sys/class/net/eno1/operstate": "down\n"}
    root = host(tmp_path, down)
    assert checks(examine(interfaces=("eno1",), root=root)) == {"link": "warning"}
    assert examine(interfaces=("ib0",), root=root) == []


def test_interface_at_another_numa_node(tmp_path: Path) -> None:
    root = host(tmp_path, allowed("0-3"))
    found = examine(interfaces=("ib0",), root=root)
    assert checks(found) == {"numa": "warning", "mask": "note"}
    assert found[0].remedy == "allow CPUs of that node: 4-7"
    assert checks(examine(interfaces=("eno1",), root=root)) == {"mask": "note"}


def test_memlock_without_rdma_is_a_note(tmp_path: Path) -> None:
    files = {path: text for path, text in HEALTHY.items() if "infiniband" not in path}
    for path, content in {**files, **limits(8 << 20)}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    assert checks(examine(root=tmp_path)) == {"memlock": "note"}


def test_stolen_time(tmp_path: Path) -> None:
    stat = {"sys/hypervisor/type": "xen\n", "proc/stat": "cpu  100 0 0 800 0 0 0 100 50 0\n"}
    (finding,) = examine(root=host(tmp_path, stat))
    assert finding.check == "steal" and "10.0 % of this virtual machine" in finding.what


def test_load_of_one_other_process_on_many_cpus_is_fine(tmp_path: Path) -> None:
    assert examine(root=host(tmp_path, {"proc/loadavg": "1.90 1 1 1/1 1\n"})) == []


def test_warnings_come_first_and_are_what_a_result_stores(tmp_path: Path) -> None:
    changes = {f"{CPU}/intel_pstate/no_turbo": "0\n", CLOCK: "acpi_pm\n"}
    found = examine(root=host(tmp_path, changes))
    assert [finding.severity for finding in found] == ["warning", "note"]
    (line,) = warnings(found)
    assert line.startswith("the kernel's clock source is acpi_pm: reading the clock")


def test_an_unknown_host_has_nothing_to_say(tmp_path: Path) -> None:
    assert examine(root=tmp_path) == []


def test_this_host() -> None:
    for finding in examine(interfaces=("lo",)):
        assert finding.check != "link"
        assert "\n" not in finding.line
