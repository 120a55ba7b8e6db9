"""GPTQ's blocks on a GPU: one launch for the steps of a block, instead of a thousand.

Each step is ten operations on a few thousand numbers, which a GPU finishes before the next one is
launched. The operations of one block are therefore recorded as a CUDA graph, on tensors that stay
where they are, and replayed for every later block that is cut in the same way. They are the
operations of `round_block` itself, so this code cannot compute anything else.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from qviz.methods.gptq import Block, GroupPlan

REPEATS = 3  # blocks of a kind from which on they are recorded: one is run plainly, and first

Rounded = tuple[torch.Tensor, torch.Tensor]  # codes as floats and errors, both [block, out]
RoundBlock = Callable[["Block"], Rounded]


@dataclass(frozen=True)
class Kind:
    """What two blocks must have in common so that the same operations serve both.

    pieces  where they are cut, counted from the block's first step
    groups  of each step: a number that steps share if they share levels
    inside  the groups whose levels are found in the block, counted from the first step's
    """

    pieces: tuple[tuple[int, int], ...]
    groups: tuple[int, ...]
    inside: tuple[int, ...]

    @classmethod
    def of(cls, plan: "GroupPlan", start: int, stop: int) -> "Kind | None":
        """That of the block [start, stop); None where a group begins inside and reaches beyond: its
        levels come from columns that lie elsewhere for each block."""
        pieces = tuple((a - start, b - start) for a, b in plan.pieces(start, stop))
        if plan.upfront:  # with act_order, each step has a group of its own
            return cls(pieces, tuple(range(stop - start)), ())
        groups = tuple(step // plan.size - start // plan.size for step in range(start, stop))
        if plan.stale_groups:
            return cls(pieces, groups, ())
        fits = [step for step in range(start, stop) if plan.first_fit(step)]
        inside = [step for step in fits if step + plan.size <= stop]
        if any(step != start for step in fits if step not in inside):
            return None
        return cls(pieces, groups, tuple(groups[step - start] for step in inside))


class Replays:
    """Runs the blocks [start, stop) of `cuts`, whole kinds of them by replaying one recording.

    The first block of a kind is run as it is: libraries are set up and kernels are loaded when
    they are first used, which must not happen while operations are recorded.

    replayed  how many blocks were
    """

    def __init__(
        self,
        plan: "GroupPlan",
        cuts: Sequence[tuple[int, int]],
        round_block: RoundBlock,
        record: "Callable[[Callable[[], Rounded]], Recorded] | None" = None,
    ) -> None:
        kinds = {cut: Kind.of(plan, *cut) for cut in cuts}
        often = Counter(kinds.values())
        self._kinds = {cut: kind for cut, kind in kinds.items() if often[kind] >= REPEATS}
        self._round, self._record = round_block, record or Recorded
        self._recordings: dict[Kind, _Recording | None] = {}
        self.replayed = 0

    def run(self, block: "Block") -> Rounded:
        """Codes and errors of the block; both are overwritten by the next call."""
        kind = self._kinds.get((block.start, block.stop))
        if kind is None:
            return self._round(block)
        levels, size = block.levels, block.levels.plan.size
        if levels.missing(block.start) and 0 not in kind.inside:
            levels.fit(block.start // size, block.w[:size], None)
        if kind not in self._recordings:
            self._recordings[kind] = None
            return self._round(block)
        recording = self._recordings[kind]
        with torch.cuda.device_of(block.w):  # type: ignore[no-untyped-call]
            if recording is None:
                recording = _Recording(block, kind, self._round, self._record)
                self._recordings[kind] = recording
            self.replayed += 1
            return recording.run(block)


class Recorded:
    """Operations on the GPU that were recorded but not executed; each `replay` executes them.
    `result` is where they leave the function's return value.
    """

    def __init__(self, work: Callable[[], Rounded]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        stream = _stream(torch.cuda.current_device())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Operations of other threads must not enter the recording.
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.result = work()
            finally:
                self._graph.capture_end()

    def replay(self) -> None:
        self._graph.replay()


@cache
def _stream(device: int) -> torch.cuda.Stream:
    """The stream on which operations are recorded: always the same one, because the library of
    matrix products keeps a workspace for each that it was used on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class _Recording:
    """The steps of a block on tensors of its own, into which those of another are copied."""

    def __init__(
        self,
        block: "Block",
        kind: Kind,
        round_block: RoundBlock,
        record: "Callable[[Callable[[], Rounded]], Recorded]",
    ) -> None:
        self._kind, self._round_block = kind, round_block
        # One step for each group whose levels are there before the block begins.
        first = {group: i for i, group in reversed(list(enumerate(kind.groups)))}
        self._given = [i for group, i in first.items() if group not in kind.inside]
        given = [block.levels[block.start + i] for i in self._given]
        tensors = [levels.tensors() for levels in given]
        self._tables = [torch.stack(same) for same in zip(*tensors, strict=True)]
        self._own = {
            block.start + i: levels.with_tensors([table[place] for table in self._tables])
            for place, (i, levels) in enumerate(zip(self._given, given, strict=True))
        }
        size = block.stop - block.start
        self._still = replace(block, w=block.w[:size].clone(), u=block.u[:, :size].clone())
        self._recorded = record(self._round)

    def _round(self) -> Rounded:
        self._levels = self._still.levels.alone(self._own)
        return self._round_block(replace(self._still, levels=self._levels))

    def run(self, block: "Block") -> Rounded:
        size = len(self._still.w)
        self._still.w.copy_(block.w[:size])
        self._still.u.copy_(block.u[:, :size])
        given = [block.levels[block.start + i].tensors() for i in self._given]
        for table, same in zip(self._tables, zip(*given, strict=True), strict=True):
            torch.stack(same, out=table)
        self._recorded.replay()
        group = block.levels.plan.size
        for i in self._kind.inside:
            found = self._levels.of_group(self._still.start // group + i)
            block.levels.keep(block.start // group + i, found.map(torch.clone))
        return self._recorded.result
