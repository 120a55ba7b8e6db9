"""How much memory is left, and a refusal in words before it runs out."""

from pathlib import Path


def available_memory() -> int | None:
    """Bytes that this process can still take, by the machine and its control group, if known."""
    limits = []
    try:
        meminfo = Path("/proc/meminfo").read_text().split()
        limits.append(int(meminfo[meminfo.index("MemAvailable:") + 1]) * 1024)
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            stat = (group / "memory.stat").read_text().split()
            cache = int(stat[stat.index("inactive_file") + 1])  # given back when it is needed
            limits.append(int(limit) - int((group / "memory.current").read_text()) + cache)
    except (OSError, ValueError):
        pass  # not Linux, or no control group: what is known so far has to do
    return min(limits) if limits else None


def require_memory(needed: int, what: str, instead: str) -> None:
    """MemoryError in words, before the machine starts to swap or kills the process."""
    free = available_memory()
    if free is not None and needed > free:
        raise MemoryError(
            f"{what} needs {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free. "
            f"{instead}"
        )
