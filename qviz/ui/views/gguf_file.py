"""What is inside a Q4_K_M file: the type of each tensor of a model, layer by layer.

All files of a model are worked out and sent ahead, so the slider needs no kernel.
"""

from dataclasses import dataclass
from typing import Any

from qviz.methods.gguf.mixes import FILE_TYPES
from qviz.study.gguf_files import MODELS, ONCE, FileMap, file_map, type_bits
from qviz.ui.figures.gguf import file_map_chart, files_chart
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.gguf_types_words import FileFacts, cell_words, file_words, mix_words
from qviz.ui.views.lesson_page import COMPUTING, LessonPage
from qviz.ui.views.parts import LessonPart
from qviz.ui.views.snippet import call
from qviz.ui.widgets import (
    Caption,
    Chart,
    Choice,
    Slider,
    Table,
    Text,
    Toggle,
    number,
    percent,
    section,
)

FIRST_MODEL, FIRST_FILE = "Llama-3.1-8B", "Q4_K_M"


@dataclass(frozen=True)
class Shown:
    """All files of a model."""

    model: str
    importance: bool
    maps: tuple[FileMap, ...]


class FilePart(LessonPart):
    """Controls, charts and words of the part."""

    keys = ("file", "model_shape", "imatrix")
    shown: Shown | None

    def __init__(self, page: LessonPage) -> None:
        super().__init__(page)
        self.types = sorted(FILE_TYPES, key=lambda name: file_map(FIRST_MODEL, name).bits)
        self.file_control = self.add(
            "file", Slider("File type", self.types, self.types.index(FIRST_FILE)),
            self._new_file, looks=True,
        )  # fmt: skip
        names = list(MODELS)
        self.model_control = self.add(
            "model_shape", Choice("Model shape", names, names.index(FIRST_MODEL)), busy=COMPUTING
        )
        self.importance_control = self.add(
            "imatrix", Toggle("With an importance matrix"), busy=COMPUTING
        )
        self.map = Chart("Which tensor gets which type", height=330)
        self.files = Chart("The block and the file", height=430)
        self.table = Table("The tensors of the file")
        self.caption, self.mix = Caption(), Caption()
        self.mix.add_class("qv-aside")
        tie_frames(self.file_control, self.map, self.files, self.table, self.caption, self.mix)
        self.lead = self.file_control
        self.controls = [self.model_control, self.importance_control]
        self.main = [
            section("Inside the file", Text(self.map.label, "h3"), self.map),
            section("", self.table),
        ]
        self.side = [section("K names the block, M the mix", self.mix, self.files)]

    def _new_file(self) -> None:
        """What is seen does not wait for the kernel; the code that is printed does."""
        if self.shown is not None:
            self._draw_code(self.shown)

    def look(self) -> None:
        self._new_file()

    def compute(self) -> Shown:
        model, importance = str(self.model_control.value), bool(self.importance_control.value)
        maps = tuple(file_map(model, name, importance=importance) for name in self.types)
        return Shown(model, importance, maps)

    def draw(self, shown: Shown) -> None:
        maps = shown.maps
        texts = [file_words(_facts(one)) for one in maps]
        self.caption.set_texts(texts)
        self.map.set_figures(file_map_chart(maps), summary=texts)
        mixes = [
            mix_words(shown.model, [(m.file_type, m.bits) for m in maps if m.base == one.base],
                      one.base)
            for one in maps
        ]  # fmt: skip
        self.mix.set_texts(mixes)
        self.files.set_figures(files_chart(maps), summary=mixes)
        self.table.set_rows(
            ["type", "bits per weight", "of the file"], [_rows(one) for one in maps]
        )
        self._draw_code(shown)

    def _draw_code(self, shown: Shown) -> None:
        page: Any = self.page
        options = {"importance": True} if shown.importance else {}
        made = call("file_map", shown.model, str(self.file_control.value), **options)
        page.code.set_texts(
            f"from qviz.study.gguf_files import file_map\n\nmap = {made}\n"
            f"print(map.bits, map.nbytes, map.raised)"
        )


def _facts(one: FileMap) -> FileFacts:
    raised = [
        (name, n, tuple(dict.fromkeys(k for k in one.types[name] if k != one.base)))
        for name, n in one.raised.items()
    ]
    once = [(name, one.types[name][0]) for name in ONCE if name in one.types]
    return FileFacts(
        one.model, one.file_type, one.base, one.base_bits, one.bits, one.parameters, one.nbytes,
        one.layers, raised, once,
    )  # fmt: skip


def _rows(one: FileMap) -> list[Any]:
    """A row for each tensor: types across the layers, their bits, share of the file's bytes."""
    rows: list[Any] = []
    for name, kinds in one.types.items():
        bits = sum(type_bits(kind) for kind in kinds) / len(kinds)
        differs = any(kind != one.base for kind in kinds)
        rows.append(
            (name, [cell_words(kinds), number(bits), percent(one.shares[name])],
             [0] if differs else [])
        )  # fmt: skip
    rows.append(("the whole file", ["", f"{one.bits:.2f}", ""], [1], "now"))
    return rows
