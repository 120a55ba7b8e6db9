"""At work: a model writes with packed weights, beside the same model with 16-bit ones."""

from typing import Any

import torch

from qviz.kernels import registry
from qviz.kernels.alone import alone
from qviz.kernels.formats import DEFAULT_FORMAT, FORMATS
from qviz.kernels.registry import BASELINE
from qviz.ui.views.kernels_race import size
from qviz.ui.views.lesson_page import LessonPage
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
    section,
    stack,
)

PROMPT = "def read_file(path):\n"
NEW_TOKENS, TOKENS, REPEATS = 48, 512, 3
WORKING = "Quantizing, packing, and writing with both models …"


class AtWork:
    """Controls, texts and tables of the third part."""

    def __init__(self, page: LessonPage) -> None:
        self._page = page
        self._formats: dict[str, list[str]] = {}  # filled when the part is opened
        self.comparison: Any = None  # the last Comparison
        self._shown: tuple[str, str] | None = None  # its format and kernel
        self._said = ""
        self.format_control = Choice("Weights stored as", ["…"])
        self.kernel_control = Choice("Multiplied by", ["…"])
        self.prompt_control = TextField("Prompt", PROMPT.strip())
        self.write_button = Button("Let both write")
        self.source_control = TextField("Model", placeholder="Hub id or folder")
        self.packed_text = Code(label="What the packed model wrote")
        self.reference_text = Code(label="What the model with 16-bit weights wrote")
        self.where = Text("", role="wait")
        self.figures = Readout("Beside 16-bit weights")
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
        self.main = [
            section(
                "What they write",
                self.where,
                figures_row(
                    stack(Text("with packed weights", "h3"), self.packed_text),
                    stack(Text("with the same, dequantized", "h3"),
                          self.reference_text),
                    wide=True,
                ),
            ),
            section("", self.figures),
        ]  # fmt: skip
        self.side = [section("", self.logits), section("", self.memory)]
        page.on_change(self.format_control, "index", self._offer_kernels)
        page.on_change(self.kernel_control, "index", self._say_whose)
        self.write_button.on_click(page.handler(self.write, WORKING))
        self._empty()

    def open(self) -> None:
        """Find out which formats have a kernel here, the first time that the part is shown."""
        if self._formats:
            return
        self._formats = _formats_with_kernels()
        names = list(self._formats)
        first = names.index(DEFAULT_FORMAT) if DEFAULT_FORMAT in names else 0
        with self._page.quietly():
            self.format_control.set_options([FORMATS[name].title for name in names], first)
        self._offer_kernels()

    @property
    def format(self) -> str:
        return list(self._formats)[int(self.format_control.index)]

    def _offer_kernels(self) -> None:
        with self._page.quietly():
            self.kernel_control.set_options(self._formats[self.format])
        self._say_whose()

    def _say_whose(self) -> None:
        """Which format and kernel the figures belong to, where others have been chosen since."""
        if self._shown is None:
            return
        again = ""
        if self._shown != (self.format, self.kernel_control.value):
            again = f" For what you chose since, press “{self.write_button.label}” again."
        self.where.text = f"{self._said}{again}"

    def _empty(self) -> None:
        self.where.text = (
            f"The bundled model continues your prompt twice. {_device_words()} It loads the model "
            f"into this page's Python, which then takes more memory."
        )
        self.caption.set_texts(f"Press “{self.write_button.label}”.")

    def write(self) -> None:
        """Quantize, pack and compare; everything shown was computed by this press."""
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
        say = self._page.status.busy
        say("Loading the model …")
        model = load_model(source or None)
        say(f"Quantizing its layers to {format.title} …")
        quantized = quantize_model(model, format.method, **format.options)
        say(f"Packing them for {kernel} …")
        packed = pack_model(quantized, kernel, device=registry.default_device())
        waiting = "Waiting: another page or command measures on this machine …"
        with alone(lambda: say(waiting)):
            say("Both models read, write, and are timed in turns …")
            found = compare(
                packed, prompt=prompt, quantized=quantized, max_tokens=TOKENS,
                new_tokens=NEW_TOKENS, repeats=REPEATS,
            )  # fmt: skip
        self.comparison = found
        self._shown = (chosen, kernel)
        self._show(model.name, format.title)

    def _show(self, name: str, stored: str) -> None:
        found = self.comparison
        texts, logits = found.texts, found.logits
        self.packed_text.set_texts(texts.prompt + texts.packed)
        self.reference_text.set_texts(texts.prompt + texts.reference)
        self._said = (
            f"{name}: {stored}, {' and '.join(found.kernels)} in {_name(found.dtype)}, measured "
            f"here. {' '.join(found.notes)}"
        ).strip()
        self._say_whose()
        self.figures.set_rows([_figure(row) for row in found.rows], "Packed · 16 bits · in words")
        self.logits.set_rows(
            [
                ("tokens compared", str(logits.tokens)),
                ("largest difference of a logit", number(logits.max_abs, 3)),
                ("difference of all, relative", f"{number(100 * logits.relative, 3)} %"),
                ("KL divergence", f"{number(logits.kl, 3)} nats"),
                ("same next token", f"{number(100 * logits.same_top, 4)} %"),
            ]
        )
        packed, dense = found.memory
        rows = [
            (part, f"{size:,} · {packed.sixteen_bit[part]:,}")
            for part, size in packed.parts.items()
        ]
        self.memory.set_rows([*rows, ("total", f"{packed.total:,} · {dense.total:,}")],
                             "Bytes held · in 16 bits")  # fmt: skip
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
        else f"the two texts part at new token {at + 1} of {found.texts.new_tokens}"
    )
    return (
        f"Packed, the model takes {number(small, 3)} times fewer bytes. Writing, beside 16-bit "
        f"weights: {pace}. And {same}."
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
