"""How much memory this process may still take, and an error in words before it takes more.

The machine is not the only limit. A container has its own (a Linux control group), which is often
far below what the machine has free, and exceeding it kills the process without a message.
"""

from collections.abc import Iterator
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that this process can still take: the least that the machine and its control groups
    leave; None where neither says (only Linux does).

    >>> free = available_memory()
    >>> free is None or free > 0
    True
    """
    limits = [limit for limit in (_machine(), *_groups()) if limit is not None]
    return min(limits) if limits else None


def require_memory(needed: int, what: str, instead: str) -> None:
    """Raise MemoryError in words, before the machine starts to swap or kills the process.

    >>> require_memory(2**20, "this copy", "Take a smaller model")
    """
    free = available_memory()
    if free is not None and needed > free:
        raise MemoryError(
            f"{what} needs {needed / 2**30:.1f} GiB of memory, but only {free / 2**30:.1f} GiB "
            f"are free. {instead}"
        )


def _machine() -> int | None:
    return _field(PROC / "meminfo", "MemAvailable:", 1024)


def _groups() -> Iterator[int | None]:
    """What this process's control groups leave, its own and all enclosing ones: each may set a
    limit."""
    for kind, path in _own_groups():
        v2 = kind == ""
        root = GROUPS if v2 else GROUPS / "memory"
        own = root / path.lstrip("/")  # in a container it may be the host's: only the root is there
        for group in (own, *own.parents):
            if not group.is_relative_to(root):
                break
            yield _left_v2(group) if v2 else _left_v1(group)


def _own_groups() -> Iterator[tuple[str, str]]:
    """("", path) of the unified hierarchy, ("memory", path) of the older one."""
    for line in _lines(PROC / "self" / "cgroup"):
        _, kinds, path = line.split(":", 2)
        if kinds == "" or "memory" in kinds.split(","):
            yield ("memory" if kinds else ""), path


def _left_v2(group: Path) -> int | None:
    cache = _field(group / "memory.stat", "inactive_file") or 0
    return _left(_number(group / "memory.max"), _number(group / "memory.current"), cache)


def _left_v1(group: Path) -> int | None:
    cache = _field(group / "memory.stat", "total_inactive_file") or 0
    limit = _number(group / "memory.limit_in_bytes")
    return _left(limit, _number(group / "memory.usage_in_bytes"), cache)


def _left(limit: int | None, used: int | None, cache: int) -> int | None:
    """`cache` is counted as used, but is released when needed."""
    return None if limit is None or used is None else max(limit - used + cache, 0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:  # no such system, or no such group: it sets no limit
        return []


def _number(path: Path) -> int | None:
    """The number in the file; None if there is none or it says "max"."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def _field(path: Path, name: str, unit: int = 1) -> int | None:
    for line in _lines(path):
        key, *values = line.split()
        if key == name:
            return int(values[0]) * unit
    return None
