"""Memory: the machine's and every control group's, from files as Linux writes them."""

import os
from pathlib import Path

import pytest

from qviz.core import memory

GIB = 2**30


def system(tmp_path, monkeypatch, *, available=64 * GIB, cgroup="0::/\n", groups=None):
    """A made-up /proc and /sys/fs/cgroup; groups: path → {file: text}."""
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    if available is not None:
        text = f"MemTotal: 1 kB\nMemAvailable:   {available // 1024} kB\n"
        (proc / "meminfo").write_text(text)
    (proc / "self" / "cgroup").write_text(cgroup)
    for path, files in (groups or {}).items():
        folder = root / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    monkeypatch.setattr(memory, "PROC", proc)
    monkeypatch.setattr(memory, "GROUPS", root)


def v2(limit, current, inactive=0):
    return {
        "memory.max": f"{limit}\n",
        "memory.current": f"{current}\n",
        "memory.stat": f"anon 1\nfile 2\ninactive_file {inactive}\n",
    }


def test_without_groups_it_is_the_machines(tmp_path, monkeypatch):
    system(tmp_path, monkeypatch, available=3 * GIB)
    assert memory.available_memory() == 3 * GIB


def test_a_containers_limit_counts_and_its_cache_is_given_back(tmp_path, monkeypatch):
    system(tmp_path, monkeypatch, groups={"": v2(2 * GIB, GIB, GIB // 4)})
    assert memory.available_memory() == GIB + GIB // 4


def test_every_group_above_may_limit(tmp_path, monkeypatch):
    groups = {"": {}, "user": v2(GIB, GIB // 2), "user/one": v2("max", GIB // 2)}
    system(tmp_path, monkeypatch, cgroup="0::/user/one\n", groups=groups)
    assert memory.available_memory() == GIB // 2


def test_a_path_of_the_host_that_is_not_here_means_the_root(tmp_path, monkeypatch):
    groups = {"": v2(GIB, 0)}
    system(tmp_path, monkeypatch, cgroup="0::/docker/0123\n", groups=groups)
    assert memory.available_memory() == GIB


def test_the_older_kind_of_group(tmp_path, monkeypatch):
    files = {
        "memory.limit_in_bytes": f"{2 * GIB}",
        "memory.usage_in_bytes": f"{GIB}",
        "memory.stat": f"cache 5\ntotal_inactive_file {GIB // 2}\n",
    }
    cgroup = "12:cpu,cpuacct:/a\n3:memory:/docker/7\n"
    system(tmp_path, monkeypatch, cgroup=cgroup, groups={"memory/docker/7": files})
    assert memory.available_memory() == GIB + GIB // 2


def test_a_group_that_is_full_leaves_nothing(tmp_path, monkeypatch):
    system(tmp_path, monkeypatch, groups={"": v2(GIB, 2 * GIB)})
    assert memory.available_memory() == 0


def test_where_nothing_says_it_is_not_known_and_nothing_is_refused(tmp_path, monkeypatch):
    system(tmp_path, monkeypatch, available=None, cgroup="")
    assert memory.available_memory() is None
    memory.require_memory(2**60, "this", "")


def test_too_much_is_refused_in_words(tmp_path, monkeypatch):
    system(tmp_path, monkeypatch, groups={"": v2(2 * GIB, GIB)})
    memory.require_memory(GIB, "this copy", "Take less.")
    with pytest.raises(
        MemoryError, match=r"this copy needs 1\.5 GiB of memory, but only 1\.0 GiB are free\. T"
    ):
        memory.require_memory(3 * GIB // 2, "this copy", "Take less.")


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says what is free")
def test_of_this_machine_it_is_plausible():
    free = memory.available_memory()
    assert 2**20 < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
