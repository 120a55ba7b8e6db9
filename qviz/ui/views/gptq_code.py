"""What determines a GPTQ run of the page, and the library calls behind it as runnable code."""

import torch

from qviz.study.gptq_plan import Plan
from qviz.ui.views.gptq_controls import SAME_TEXT, RunControls
from qviz.ui.views.layer_page import Opened
from qviz.ui.views.layer_texts import OWN_TEXT, LayerTexts
from qviz.ui.views.snippet import Name, call

WIDEST = 8192  # columns: the Hessian, factor and errors of more do not fit into a session's memory
SHOWN = (
    1 << 22
)  # weights; of a larger layer the first rows are shown, which do not depend on the others


def shown_rows(opened: Opened) -> torch.Tensor:
    """[rows, in] float32 of a layer, the rows that a page shows. Raises ValueError where it is too
    wide."""
    columns = opened.weight.shape[1]
    if columns > WIDEST:
        raise ValueError(
            f"{opened.layer} has {columns} input channels; the page shows layers of up to "
            f"{WIDEST}. qviz.quantize(weight, 'gptq', calibration) has no such limit"
        )
    return opened.weight[: max(1, SHOWN // columns)].float()


def same_run(one: Plan | None, other: Plan) -> bool:
    """Whether two plans lead to the same run."""
    return one is not None and (
        one.weight is other.weight
        and one.calibration is other.calibration
        and one.judge is other.judge
        and one.options == other.options
    )


def judge_of(controls: RunControls) -> str:
    """The text that errors are measured on, by its name on the page."""
    return str(controls.text.value if controls.judge.value == SAME_TEXT else controls.judge.value)


def snippet(
    opened: Opened,
    plan: Plan,
    controls: RunControls,
    texts: LayerTexts,
    step: int,
    cell: tuple[int, int],
) -> str:
    """The code of what is shown now: at `step`, with the history of the weight `cell`."""
    where, text, judge = (opened.source, opened.layer), controls.text.value, judge_of(controls)
    inputs = call("qviz.load_calibration", *where, text=texts.in_code(text))
    tokens = int(controls.tokens.value)
    if tokens < texts.of(opened, text).tokens:
        inputs += f".sample({tokens})"
    walk = call("Walk", Name("weight"), Name("inputs"), Name("judge"), **plan.options)
    own = f"your_text = {texts.own!r}\n" if OWN_TEXT in (text, judge) else ""
    return (
        f"import qviz, torch\nfrom qviz.study.gptq_walk import Walk\n\n{own}"
        f"weight = {call('qviz.load_layer', *where)}.float()\n"
        f"inputs = {inputs}\n"
        f"judge = {call('qviz.load_calibration', *where, text=texts.in_code(judge))}\n"
        f"walk = {walk}\n"
        f"walk.now({step}), walk.error[{step}], walk.story{cell}"
    )
