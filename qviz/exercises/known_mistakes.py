"""The catalogue of known mistakes in GPTQ: what each does, and the variants that make it."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from qviz.exercises.variants import ROUNDINGS, Bench, Cut, Variant
from qviz.methods.affine import CONVENTIONS
from qviz.methods.gptq import FAILURES

EXPLANATIONS = {
    "no_compensation": "columns are rounded without compensation: no error is passed on to "
    "later columns. After each column: W[:, j+1:] −= outer(e_j, U[j, j+1:]). If your code "
    "does that, e_j is 0: w_j = W[:, j] is a view, which is overwritten with q_j before it "
    "is subtracted; copy it",
    "lower_factor": "row j of the lower factor L of H⁻¹ is 0 to the right of the diagonal, so "
    "nothing is compensated. Take row j of U = Lᵀ (column j of L)",
    "no_update": "H⁻¹ of the whole matrix is used at every step, although the columns already "
    "rounded are fixed. Take row j of its upper Cholesky factor U instead of row j of H⁻¹",
    "double_division": "the compensation is divided twice by U_jj: e_j = (w_j − q_j) / U_jj holds "
    "the one division; then w_k −= e_j·U_jk",
    "as_printed": "as many articles print it: H⁻¹ is never updated, and the error is divided "
    "twice by its diagonal. Take U, the upper Cholesky factor of H⁻¹, and divide once",
    "no_division": "the error is not divided: it must be e_j = (w_j − q_j) / U_jj",
    "factor_of_hessian": "the factor is that of H, not of its inverse: it must satisfy H⁻¹ = UᵀU",
    "other_factor": "the factor is the inverse of H's own, with H⁻¹ = U·Uᵀ: that is for the "
    "columns from right to left. From left to right H⁻¹ = UᵀU is needed",
    "wrong_sign": "the compensation has the wrong sign: w_k −= e_j·U_jk with e_j = (w_j − q_j) / "
    "U_jj; w − q, not q − w",
    "within_block_only": "errors are passed on only within a block. After each block, add: "
    "W[:, stop:] −= E @ U[start:stop, stop:]",
    "update_skips_column": "the update after a block skips the first column after the block: "
    "begin at `stop`, not at stop + 1",
    "update_skips_error": "the update after a block omits the error of its last column: use all "
    "of E and of U[start:stop]",
    "compensation_skips_column": "the compensation skips the very next column: begin at j + 1, "
    "not at j + 2",
    "no_damping": "H is not damped: add damp times the mean of its diagonal to the diagonal before "
    "inverting",
    "absolute_damping": "`damp` itself is added to the diagonal of H: it is a fraction of the "
    "mean of the diagonal, so multiply it by that mean",
    "damping_everywhere": "the damping is added to all of H: it belongs only on the diagonal, "
    "H[j, j] += damp * mean",
    "floor": "codes are rounded down (floor, or a cast to integer) instead of to the nearest level",
    "truncation": "codes are truncated toward zero instead of being rounded to the nearest level",
    "ceil": "codes are rounded up instead of to the nearest level",
    "no_clamp": "codes are not clamped to the range that the bits allow",
    "static_groups": "a group's scale comes from the original weights: compute it when the "
    "group is reached, from the columns as compensated so far",
    "live_groups": "a group's scale comes from the compensated weights: this run uses static "
    "groups, whose scales come from the original ones",
    "stale_groups": "a group's scale comes from weights that lack the compensation of the "
    "current block, as in the reference code: compute it from the columns as they are at "
    "that step",
    "another_group_size": "the groups do not have the requested size: is group_size a parameter "
    "of your function?",
    "whole_row": "one scale is used for a whole row: each group needs its own",
    "per_tensor": "a group's range is taken over all rows: each row needs its own scale",
    "symmetric": "the levels are symmetric, but asymmetric ones were requested",
    "asymmetric": "the levels are asymmetric, but symmetric ones were requested",
    "another_convention": "the levels do not follow the requested convention",
    "no_order": "the columns are rounded from left to right, but act_order means in descending "
    "order of diag H",
    "order_unasked": "the columns are rounded in descending order of diag H, but act_order is off",
    "ascending_order": "the columns are rounded in ascending order of diag H, but act_order "
    "means descending",
    "order_not_undone": "the columns were returned in the order of the steps: undo the "
    "permutation, codes[:, argsort(perm)]",
    "order_applied_twice": "the permutation was applied again instead of undone: "
    "codes[:, argsort(perm)], not codes[:, perm]",
    "codes_shifted": "all codes are shifted by the same number: count them from 0, or around 0 "
    "from −2^(bits − 1)",
    "zero_point_off_by_one": "the zero point is off by one",
    "transposed": "the returned matrix is transposed: return [out, in], where rows are outputs",
    "rounded_moved": "the column just rounded was compensated too and became 2q − w: change "
    "only the columns from j + 1 on",
    "not_rounded": "the compensated weights were returned, not their rounded values: keep q_j",
    "dead_columns": "columns whose input was always 0 were not treated separately: set their "
    "diag H to 1 and their weights to 0",
    "dead_in_ranges": "columns whose input was always 0 count in a range where they should not, "
    "or do not count where they should: a whole row's range is taken before they are set to "
    "0, as in the reference code, a group's range after that",
}


def candidates(bench: Bench, values: bool) -> Iterator[Variant]:
    """Every known mistake that can be made on this bench's layer with its options; some show only
    in values."""
    o = bench.options
    yield from _compensation(int(o["block_size"]), len(bench.hessian))
    yield from _order(bool(o["act_order"]))
    yield from (Variant(name, rounding=name) for name in ROUNDINGS if name != "nearest")
    yield Variant("no_clamp", clamp=False)
    yield from _levels(o)
    for shift in (-1, 1):
        yield Variant("zero_point_off_by_one", shift=shift, detail=f"{shift:+d}")
    if values:
        yield Variant("rounded_moved", shown="mirrored")
        yield Variant("not_rounded", shown="live")
    if bool((bench.hessian.diagonal() == 0).any()):
        yield Variant("dead_columns", dead=False)
        yield from (Variant("dead_in_ranges", counts=counts) for counts in (False, True))


def _compensation(block: int, n: int) -> Iterator[Variant]:
    """Mistakes in the factor, the division, the damping and the extent of the compensation."""
    yield Variant("no_compensation", factor="none")
    yield Variant("lower_factor", factor="lower")
    yield from (Variant(name, factor=name) for name in FAILURES)
    yield Variant("no_division", divide=False)
    yield Variant("factor_of_hessian", factor="of_hessian")
    yield Variant("other_factor", factor="reversed")
    yield Variant("wrong_sign", sign=-1)
    yield Variant("no_damping", damping="none")
    yield Variant("absolute_damping", damping="absolute")
    yield Variant("damping_everywhere", damping="everywhere")
    yield Variant("compensation_skips_column", keep=_skip_next)
    for size in sorted({block, 128}):
        if size < n:
            detail = f"blocks of {size}"
            yield Variant("within_block_only", keep=_within(size), detail=detail)
            yield Variant("update_skips_column", keep=_skip_column(size), detail=detail)
            yield Variant("update_skips_error", keep=_skip_error(size), detail=detail)


def _order(asked: bool) -> Iterator[Variant]:
    if not asked:
        yield Variant("order_unasked", order="descending")
        return
    yield Variant("no_order", order="given")
    yield Variant("ascending_order", order="ascending")
    yield Variant("order_not_undone", placed="steps")
    yield Variant("order_applied_twice", placed="twice")


def _levels(options: Mapping[str, Any]) -> Iterator[Variant]:
    """Mistakes in which weights the levels are computed from, and by which rule."""
    size, n = options["group_size"], options["in_features"]
    if size is not None:
        live = {"static_groups": False, "stale_groups": False}
        if options["static_groups"] or options["stale_groups"]:
            yield Variant("live_groups", plan=live)
        if not options["static_groups"]:
            static = {"static_groups": True, "stale_groups": False}
            yield Variant("static_groups", plan=static, detail="groups of columns")
        if options["act_order"]:
            yield Variant("static_groups", plan=live, snapshot=n, detail="groups of steps")
        for block in sorted({options["block_size"], 128}):
            if size < min(block, n) and not options["stale_groups"]:
                detail = f"blocks of {block}"
                yield Variant("stale_groups", plan=live, snapshot=block, detail=detail)
        whole = {"group_size": None, "stale_groups": False}
        yield Variant("whole_row", plan=whole)
    for another in (16, 32, 64, 128, 256):
        if another not in (size, n) and n % another == 0:
            plan = {"group_size": another}
            yield Variant("another_group_size", plan=plan, detail=str(another))
    if not options["mse"]:
        yield Variant("per_tensor", per_tensor=True)
    mode = bool(options["symmetric"])
    for name, rules in CONVENTIONS.items():
        if name != options["convention"] and (rules.symmetric if mode else rules.asymmetric):
            yield Variant("another_convention", plan={"convention": name}, detail=name)
        if rules.asymmetric if mode else rules.symmetric:
            other = {"symmetric": not mode, "convention": name}
            yield Variant("asymmetric" if mode else "symmetric", plan=other, detail=name)


def _skip_next(ratio: torch.Tensor) -> torch.Tensor:
    ratio.diagonal(1).zero_()
    return ratio


def _within(block: int) -> Cut:
    def keep(ratio: torch.Tensor) -> torch.Tensor:
        number = torch.arange(len(ratio), device=ratio.device) // block
        return ratio.masked_fill_(number.unsqueeze(1) != number, 0.0)

    return keep


def _skip_column(block: int) -> Cut:
    def keep(ratio: torch.Tensor) -> torch.Tensor:
        for stop in range(block, len(ratio), block):
            ratio[stop - block : stop, stop] = 0.0
        return ratio

    return keep


def _skip_error(block: int) -> Cut:
    def keep(ratio: torch.Tensor) -> torch.Tensor:
        for stop in range(block, len(ratio), block):
            ratio[stop - 1, stop:] = 0.0
        return ratio

    return keep
