"""The lessons that exist, in their order: the gallery, the server and the tests read this list."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Lesson:
    """One notebook with one view. `view` is the class in qviz.ui.views that it shows."""

    number: int
    slug: str
    title: str
    question: str
    promise: str

    @property
    def notebook(self) -> str:
        return f"{self.number:02d}_{self.slug}.ipynb"


LESSONS = (
    Lesson(
        1,
        "bit_width",
        "Bit width",
        "How many bits does a weight need?",
        "Drag a slider from 8 bits to 2 on a layer of a trained model. Watch every weight jump to "
        "its nearest level, the error grow, and what the bits cost.",
    ),
    Lesson(
        7,
        "gptq",
        "GPTQ, column by column",
        "How can the rest of a layer make good for a rounding error?",
        "Step through GPTQ on a trained layer and the inputs it really gets, forwards and "
        "backwards. See what each column hands on, click a weight for its whole story, and set a "
        "second run beside the first.",
    ),
    Lesson(
        11,
        "memory_and_speed",
        "The real kernels",
        "Why are 4-bit weights faster, and when do they stop paying?",
        "Race the kernels of this machine, or of those that we recorded, against 16-bit weights, "
        "from one token to 256. Step through a kernel's tiles, bit by bit, and let a model write "
        "with packed weights.",
    ),
)
