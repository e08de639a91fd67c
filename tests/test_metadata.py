import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commbench.harness import hardware, metadata
from commbench.harness.sysfs import Tree, format_cpus, parse_cpus

# A healthy two-socket InfiniBand node, in the formats of the kernel: path -> content.
INFINIBAND = json.loads((Path(__file__).parent / "hosts/infiniband.json").read_text())


def plant(root: Path, files: dict[str, str]) -> Tree:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return Tree(root)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    plant(tmp_path, INFINIBAND)
    driver = tmp_path / "sys/class/net/ib0/device/driver"
    driver.symlink_to("../../../../bus/pci/drivers/mlx5_core")
    return tmp_path


# ---------------------------------------------------------------- an InfiniBand node


def test_host_and_cpu(node: Path) -> None:
    found = metadata.collect(root=node, environ={})
    assert found["name"] == "node017"
    assert found["kernel"] == "5.14.0-427.el9.x86_64"
    assert found["cpu"] == {
        "model": "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz",
        "online": "0-7",
        "cores": 8,
        "smt": False,
        "affinity": "0-7",
        "quota": None,
        "governor": "performance",
        "turbo": False,
        "clocksource": "tsc",
        "numa": {"0": "0-3", "1": "4-7"},
    }
    assert found["memory"] == {
        "total": 131_900_000 * 1024,
        "swap_used": 0,
        "transparent_hugepages": "madvise",
        "memlock": None,
    }
    assert found["virtual"] == {"hypervisor": None, "container": None}


def test_interfaces_with_link_layer_rate_and_numa_node(node: Path) -> None:
    found = metadata.collect("ib0", root=node, environ={})
    by_name = {nic["name"]: nic for nic in found["nics"]}
    assert list(by_name) == ["eno1", "ib0", "lo"]
    assert by_name["ib0"] == {
        "name": "ib0",
        "link_layer": "infiniband",
        "mtu": 65520,
        "speed_mbps": 100_000,
        "state": "up",
        "mode": "connected",
        "driver": "mlx5_core",
        "numa_node": 1,
        "used": True,
    }
    assert by_name["lo"]["speed_mbps"] is None and by_name["lo"]["link_layer"] == "loopback"
    assert not by_name["eno1"]["used"]
    assert found["rdma"] == [
        {
            "device": "mlx5_0",
            "port": 1,
            "link_layer": "InfiniBand",
            "rate": "100 Gb/sec (4X EDR)",
            "state": "ACTIVE",
            "firmware": "12.28.2006",
            "interfaces": ["ib0"],
            "numa_node": 1,
        }
    ]


def test_no_hardware_address_is_recorded(node: Path) -> None:
    assert "b8:59:9f" not in json.dumps(metadata.collect(root=node, environ={}))


def test_of_very_many_interfaces_the_used_one_is_kept(tmp_path: Path) -> None:
    tree = plant(tmp_path, {f"sys/class/net/veth{n}/type": "1\n" for n in range(200)})
    names = [nic["name"] for nic in hardware.nics(tree, ("veth150",))]
    assert len(names) == 64 and names[:2] == ["veth0", "veth1"] and names[-1] == "veth150"


# ---------------------------------------------------------------- other hosts


def test_an_empty_tree_is_all_none_and_json(tmp_path: Path) -> None:
    found = metadata.collect(root=tmp_path, environ={})
    json.dumps(found)
    assert found["cpu"]["model"] is None and found["cpu"]["smt"] is None
    assert found["nics"] == found["rdma"] == []


def test_arm_has_no_model_name(tmp_path: Path) -> None:
    tree = plant(tmp_path, {"proc/cpuinfo": "CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"})
    assert hardware.cpu_model(tree) == "Arm implementer 0x41 part 0xd0c"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (  # a limit above us binds us too
            {
                "proc/self/cgroup": "0::/pod/me\n",
                "sys/fs/cgroup/pod/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/pod/me/cpu.max": "max 100000\n",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_cpu_quota_of_control_groups(
    tmp_path: Path, files: dict[str, str], cpus: float | None
) -> None:
    assert hardware.cpu_quota(plant(tmp_path, files)) == cpus


@pytest.mark.parametrize(
    ("files", "environ", "name"),
    [
        ({".dockerenv": ""}, {}, "docker"),
        ({"run/.containerenv": ""}, {}, "podman"),
        ({"proc/self/cgroup": "0::/kubepods/besteffort/pod1\n"}, {}, "kubepods"),
        ({}, {"APPTAINER_NAME": "img.sif"}, "apptainer"),
        ({}, {"container": "lxc"}, "lxc"),
        ({}, {}, None),
    ],
)
def test_container(
    tmp_path: Path, files: dict[str, str], environ: dict[str, str], name: str | None
) -> None:
    assert hardware.container(plant(tmp_path, files), environ) == name


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"proc/cpuinfo": "flags\t: fpu hypervisor sse\n"}, "unknown"),
        (
            {
                "proc/cpuinfo": "flags\t: hypervisor\n",
                "sys/class/dmi/id/sys_vendor": "QEMU\n",
                "sys/class/dmi/id/product_name": "Standard PC\n",
            },
            "QEMU Standard PC",
        ),
        ({"proc/cpuinfo": "flags\t: fpu\n", "sys/class/dmi/id/sys_vendor": "Dell\n"}, None),
        ({"sys/hypervisor/type": "xen\n"}, "xen"),
    ],
)
def test_hypervisor(tmp_path: Path, files: dict[str, str], name: str | None) -> None:
    assert hardware.hypervisor(plant(tmp_path, files)) == name


# ---------------------------------------------------------------- this host


def test_this_host() -> None:
    found = metadata.collect("lo")
    json.dumps(found)
    assert found["name"] == os.uname().nodename
    assert found["kernel"] == os.uname().release
    assert parse_cpus(found["cpu"]["affinity"]) == os.sched_getaffinity(0)
    assert len(parse_cpus(found["cpu"]["online"])) == os.sysconf("SC_NPROCESSORS_ONLN")
    lo = next(nic for nic in found["nics"] if nic["name"] == "lo")
    assert lo["used"] and lo["link_layer"] == "loopback"


def test_peak_memory_grows_with_what_was_touched() -> None:
    before = hardware.peak_rss_bytes(Tree())
    assert before is not None
    touched = bytearray(os.urandom(1)) * (64 << 20)
    after = hardware.peak_rss_bytes(Tree())
    assert after is not None
    assert after >= max(before, len(touched))


def test_peak_memory_that_is_not_told(tmp_path: Path) -> None:
    assert hardware.peak_rss_bytes(plant(tmp_path, {"proc/self/status": "Name:\tpython\n"})) is None


def test_versions_come_without_imports() -> None:
    code = (
        "import sys, json\n"
        "from commbench.harness import metadata\n"
        "print(json.dumps(metadata.collect()['libraries']))\n"
        "loaded = {'numpy', 'mpi4py', 'grpc', 'commbench._native'} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    versions = json.loads(done.stdout)
    assert {"commbench", "numpy"} <= set(versions) and "no-such" not in versions


# ---------------------------------------------------------------- environment


def test_environment_is_allow_listed_and_redacted() -> None:
    kept = metadata.environment(
        {
            "UCX_TLS": "rc,self",
            "OMPI_COMM_WORLD_RANK": "1",
            "OMP_NUM_THREADS": "4",
            "COMMBENCH_RANK": "0",
            "COMMBENCH_TOKEN": "deadbeef",
            "COMMBENCH_TOKEN_FILE": "/run/x",
            "HOME": "/home/me",
            "AWS_SECRET_ACCESS_KEY": "deadbeef",
            "SLURM_JWT": "deadbeef",
            "GRPC_AUTH_HEADER": "deadbeef",
            "SLURM_JOB_ACCESS_TOKEN": "deadbeef",
            "OMPI_MCA_orte_precondition_transports": "deadbeef",
            "OMPI_MCA_orte_hnp_uri": "deadbeef",
            "grpc_proxy": "http://deadbeef@proxy",
            "GRPC_PROXY": "http://me:deadbeef@proxy:3128",
            "FI_PASSWORD": "deadbeef",
        }
    )
    assert "deadbeef" not in json.dumps(kept)
    assert {name for name, value in kept.items() if value != metadata.REDACTED} == {
        "COMMBENCH_RANK",
        "OMPI_COMM_WORLD_RANK",
        "OMP_NUM_THREADS",
        "UCX_TLS",
    }
    assert not any(name.startswith("COMMBENCH_TOKEN") for name in kept)
    assert kept["FI_PASSWORD"] == kept["GRPC_PROXY"] == metadata.REDACTED


def test_values_are_bounded_and_text() -> None:
    kept = metadata.environment({"UCX_A": "x" * 5000, "UCX_B": os.fsdecode(b"\xff")})
    assert len(kept["UCX_A"]) == 1000
    json.dumps(kept, ensure_ascii=False).encode()


# ---------------------------------------------------------------- git


def test_git_revision_is_what_git_says(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()

    assert metadata.git_revision(tmp_path) is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "one")
    head = git("rev-parse", "HEAD")
    assert metadata.git_revision(tmp_path) == head
    git("pack-refs", "--all")
    assert metadata.git_revision(tmp_path) == head
    git("worktree", "add", "-q", str(tmp_path / "tree"))
    assert metadata.git_revision(tmp_path / "tree") == head
    git("checkout", "-q", "--detach")
    assert metadata.git_revision(tmp_path) == head
    (tmp_path / "below").mkdir()
    assert metadata.git_revision(tmp_path / "below") is None


# ---------------------------------------------------------------- reading


@given(st.frozensets(st.integers(0, 500)))
def test_cpu_lists(cpus: frozenset[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == cpus


@pytest.mark.parametrize("text", [None, "", "x", "3-", "1-2-3", "-1"])
def test_what_is_no_cpu_list_is_empty(text: str | None) -> None:
    assert parse_cpus(text) == frozenset()


def test_tree_never_raises(tmp_path: Path) -> None:
    tree = plant(tmp_path, {"binary": "", "words": "ten\n"})
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    assert tree.text("none") is None and tree.text("") is None
    assert tree.text("binary") is not None
    assert tree.number("words") is None and tree.number("none") is None
    assert tree.names("none") == [] and tree.link("words") is None
    assert tree.field("words", "ten") is None
