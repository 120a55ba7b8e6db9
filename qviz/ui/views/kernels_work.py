"""At work: a model writes with packed weights, beside the same model with 16-bit ones."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qviz.kernels import registry
from qviz.kernels.alone import alone
from qviz.kernels.formats import DEFAULT_FORMAT, FORMATS
from qviz.kernels.registry import BASELINE
from qviz.ui.views.fields import WordsField
from qviz.ui.views.kernels_words import size
from qviz.ui.views.lesson_page import LessonPage
from qviz.ui.views.parts import LessonPart
from qviz.ui.widgets import (
    Button,
    Caption,
    Choice,
    Code,
    Readout,
    Text,
    TextField,
    details,
    figures_row,
    number,
    percent,
    section,
    show_only,
    stack,
)

if TYPE_CHECKING:
    from qviz.kernels.packed_compare import Comparison

PROMPT = "def read_file(path):\n"
NEW_TOKENS, TOKENS, REPEATS = 48, 512, 3
WORKING = "Quantizing, packing, and generating with both models …"


@dataclass(frozen=True, eq=False)
class Wrote:
    """What the part shows: a comparison, and whose."""

    comparison: "Comparison"
    model: str
    format: str
    kernel: str


class AtWork(LessonPart):
    """Controls, texts and tables of the third part."""

    keys = ("packed", "kernels", "prompt")  # its fields

    has_code = False
    shown: Wrote | None

    def __init__(self, page: LessonPage) -> None:
        super().__init__(page)
        self._formats: dict[str, list[str]] = {}  # filled when the part is first opened
        self.format_control = Choice("Weights stored as", ["…"])
        self.kernel_control = Choice("Multiplied by", ["…"])
        self.prompt_control = TextField("Prompt", PROMPT.strip())
        self.write_button = Button("Let both write")
        self.source_control = TextField("Model", placeholder="Hub id or folder")
        self.packed_text = Code(label="What the packed model wrote")
        self.reference_text = Code(label="What the model with 16-bit weights wrote")
        self.where = Text("", role="wait")
        self.figures = Readout("Compared with 16-bit weights")
        self.logits = Readout("Is it the same model?")
        self.memory = Readout("Bytes it holds")
        self.caption = Caption()
        self.controls = [
            self.format_control,
            self.kernel_control,
            self.prompt_control,
            self.write_button,
            details("Your own model", self.source_control),
        ]
        texts_row = figures_row(
            stack(Text("with packed weights", "h3"), self.packed_text),
            stack(Text("with the same, dequantized", "h3"), self.reference_text),
            wide=True,
        )
        self.main = [
            section(
                "What they write",
                self.where,
                texts_row,
            ),
            section("", self.figures),
        ]
        self.side = [section("", self.logits), section("", self.memory)]
        # A section belongs to the part; its content stays hidden until there is something to show.
        self.hidden_until_written = [texts_row, *self.main[1:], *self.side]
        self._wire()

    def _wire(self) -> None:
        self.add(
            "packed", self.format_control, self._choose, names=lambda: list(self._formats) or ["…"]
        )
        self.add("kernels", self.kernel_control, self.look)
        self.page.fields["prompt"] = WordsField("prompt", self.prompt_control, live=self.is_open)
        self.page.on_press(
            self.write_button, self.write, WORKING, field=self.prompt_control, deed="write"
        )

    def fit(self) -> None:
        """Find out which formats have a kernel here, when the part is first shown."""
        if not self._formats:
            self._formats = _formats_with_kernels()
            names = list(self._formats)
            first = names.index(DEFAULT_FORMAT) if DEFAULT_FORMAT in names else 0
            self.format_control.set_options([FORMATS[name].title for name in names], first)
        self.kernel_control.set_options(self._formats[self.format])

    def _choose(self) -> None:
        with self.page.quietly():
            self.fit()
        self.look()

    @property
    def format(self) -> str:
        return list(self._formats)[int(self.format_control.index)]

    def look(self) -> None:
        """Which format and kernel the figures belong to, if others have been chosen since."""
        shown = self.shown
        if shown is None:
            self.where.text = (
                "The bundled model continues your prompt twice, once with packed weights and "
                f"once with 16-bit weights. {_device_words()} This loads the model into this "
                "page's Python process, which then takes more memory."
            )
            self.caption.set_texts(f"Press “{self.write_button.label}”.")
        else:
            found, again = shown.comparison, ""
            if (shown.format, shown.kernel) != (self.format, self.kernel_control.value):
                again = f" For your new choice, press “{self.write_button.label}” again."
            self.where.text = (
                f"{shown.model}: {FORMATS[shown.format].title}, {' and '.join(found.kernels)} in "
                f"{_name(found.dtype)}, measured here. {' '.join(found.notes)}"
            ).strip() + again
        for box in self.hidden_until_written:
            show_only(box, shown is not None)

    def write(self) -> None:
        """Quantize, pack and compare; everything shown was computed by this press."""
        self.update()

    def compute(self) -> Wrote:
        from qviz.kernels.packed_compare import compare
        from qviz.kernels.packed_model import pack_model
        from qviz.models.load import load_model
        from qviz.models.quantize import quantize_model

        prompt = str(self.prompt_control.value)
        if not prompt.strip():
            raise ValueError("type a prompt first, such as def main():")
        source, kernel = self.source_control.value.strip(), self.kernel_control.value
        chosen = self.format
        format = FORMATS[chosen]
        say = self.page.status.busy
        say("Loading the model …")
        model = load_model(source or None)
        say(f"Quantizing its layers to {format.title} …")
        quantized = quantize_model(model, format.method, **format.options)
        say(f"Packing them for {kernel} …")
        packed = pack_model(quantized, kernel, device=registry.default_device())
        waiting = "Waiting: another page or command is measuring on this machine …"
        with alone(lambda: say(waiting)):
            say("Both models read and write, timed in turns …")
            found = compare(
                packed, prompt=prompt, quantized=quantized, max_tokens=TOKENS,
                new_tokens=NEW_TOKENS, repeats=REPEATS,
            )  # fmt: skip
        return Wrote(found, model.name, chosen, kernel)

    def draw(self, shown: Wrote) -> None:
        self.shown = shown
        found = shown.comparison
        texts, logits = found.texts, found.logits
        self.packed_text.set_texts(texts.prompt + texts.packed)
        self.reference_text.set_texts(texts.prompt + texts.reference)
        self.look()
        self.figures.set_rows([_figure(row) for row in found.rows], "Packed · 16 bits · in words")
        self.logits.set_rows(
            [
                ("tokens compared", str(logits.tokens)),
                ("largest difference of a logit", number(logits.max_abs, 3)),
                ("relative difference of all logits", percent(logits.relative)),
                ("KL divergence", f"{number(logits.kl, 3)} nats"),
                ("same next token", percent(logits.same_top, 4)),
            ]
        )
        packed, dense = found.memory
        rows = [
            (part, f"{size:,} · {packed.sixteen_bit[part]:,}")
            for part, size in packed.parts.items()
        ]
        self.memory.set_rows([*rows, ("total", f"{packed.total:,} · {dense.total:,}")],
                             "Bytes held · at 16 bits")  # fmt: skip
        self.caption.set_texts(_verdict(found))


def _figure(row: dict[str, Any]) -> tuple[str, str]:
    """One row of a comparison: both figures, and what their ratio means."""
    show = size if "bytes" in row["what"] else number
    words = row["in words"] or f"ratio {number(row['ratio'])}"
    return row["what"], f"{show(row['packed'])} · {show(row['16 bits'])} · {words}"


def _verdict(found: Any) -> str:
    """What the comparison says, in two sentences."""
    pace = next(row["in words"] for row in found.rows if row["what"].startswith("decode"))
    small = found.memory[1].total / found.memory[0].total
    at = found.texts.parts_at
    same = (
        f"the two texts are the same for all {found.texts.new_tokens} tokens"
        if at is None
        else f"the two texts differ from new token {at + 1} of {found.texts.new_tokens} on"
    )
    return (
        f"Packed, the model is {number(max(small, 1 / small), 3)}× "
        f"{'smaller' if small >= 1 else 'larger'}. Writing, compared with 16-bit weights: {pace}. "
        f"And {same}."
    )


def _formats_with_kernels() -> dict[str, list[str]]:
    """Format → the kernels of this device that take it and can be used for work."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    found = {}
    for name, format in FORMATS.items():
        q = format.quantize(weight)
        usable = [
            kernel.name
            for kernel in registry.usable(q, registry.default_device())
            if kernel.name != BASELINE and not kernel.interpreted
        ]
        if usable:
            found[name] = usable
    return found


def _device_words() -> str:
    device = registry.default_device()
    return "It runs on the GPU." if device.type == "cuda" else "It runs on the processor."


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
