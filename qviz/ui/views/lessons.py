"""The course: fifteen lessons by theme, as data for the gallery, the frame and the tests."""

from dataclasses import dataclass

THEMES = (
    "Numbers",
    "Scales",
    "Activations and outputs",
    "Formats that files use",
    "Speed and damage",
    "Putting it together",
)


@dataclass(frozen=True)
class Lesson:
    """One notebook with one view.

    title, question, promise  in a learner's words
    theme                     one of `THEMES`
    module, view              where the class of its page is; empty while there is none
    """

    number: int
    slug: str
    title: str
    question: str
    theme: str
    promise: str = ""
    module: str = ""
    view: str = ""

    @property
    def exists(self) -> bool:
        return bool(self.module)

    @property
    def notebook(self) -> str:
        return f"{self.number:02d}_{self.slug}.ipynb"


COURSE = (
    Lesson(
        1, "bit_width", "Bit width", "How many bits does a weight need?", THEMES[0],
        "Drag a slider from 8 bits to 2 on a layer of a trained model. Watch every weight jump to "
        "its nearest level, the error grow, and what the bits cost.",
        "qviz.ui.views.bit_width", "BitWidthLesson",
    ),
    Lesson(
        2, "formats", "Number formats", "Which numbers can sixteen, eight or four bits "
            "represent?", THEMES[0],
        "Press the bits of FP32, BF16, FP8, FP4, NF4 and nine more. Follow one number through "
        "all of them, zoom along all the numbers that each can represent, and see blocks of "
        "real weights share a scale.",
        "qviz.ui.views.formats", "FormatsLesson",
    ),
    Lesson(
        3, "scale_and_zero_point", "Scale and zero point",
        "Where do the levels lie, and who decides?", THEMES[1],
        "Drag the range that sixteen levels span, on real weights. Watch the rounding error and "
        "the clipping error, find the range with the smallest sum, and see how ten systems "
        "quantize the same numbers.",
        "qviz.ui.views.scale_and_zero_point", "ScaleAndZeroPointLesson",
    ),
    Lesson(
        4, "granularity", "Granularity and outliers",
        "Whose precision does one large weight destroy?", THEMES[1],
        "Drag one weight of a trained layer and see which weights pay for it: all of them, its "
        "row, or its group. Then compare small groups with more bits per code at the same true "
        "cost.",
        "qviz.ui.views.granularity", "GranularityLesson",
    ),
    Lesson(
        5, "nf4", "NF4", "Where should sixteen levels lie?", THEMES[1],
        "Build NF4's table from the normal distribution, one level at a time. See how full its "
        "bins really are, read its bytes, and try to beat it with sixteen levels of your own.",
        "qviz.ui.views.nf4", "Nf4Lesson",
    ),
    Lesson(
        6, "activation_outliers", "Activation outliers",
        "What if the inputs are harder to round than the weights?", THEMES[2],
    ),
    Lesson(
        7, "gptq", "GPTQ, column by column",
        "How can the rest of a layer compensate for a rounding error?", THEMES[2],
        "Begin with three weights whose every number you can check. Then step through a trained "
        "layer, forwards and backwards, and set a second run beside the first.",
        "qviz.ui.views.gptq", "GptqLesson",
    ),
    Lesson(8, "awq", "AWQ", "Which channels matter most?", THEMES[2]),
    Lesson(9, "gguf", "GGUF and k-quants", "What is inside a Q4_K_M file?", THEMES[3]),
    Lesson(10, "below_4_bits", "Below 4 bits", "Why do two bits break a layer?", THEMES[3]),
    Lesson(
        11, "memory_and_speed", "The real kernels",
        "Why are 4-bit weights faster, and when do they stop paying?", THEMES[4],
        "Race kernels against 16-bit weights, from one token to 256, on this machine or in "
        "recorded measurements. Step through a kernel's tiles, bit by bit, and let a model "
        "write with packed weights.",
        "qviz.ui.views.kernels", "KernelsLesson",
    ),
    Lesson(
        12, "model_damage", "Model damage", "What does the model itself lose?", THEMES[4],
    ),
    Lesson(13, "workbench", "Workbench", "Which method for my layer?", THEMES[5]),
    Lesson(14, "training", "Training", "Can training compensate for fewer bits?", THEMES[5]),
    Lesson(15, "claims", "Claim checker", "Is what the articles say true?", THEMES[5]),
)  # fmt: skip

#: The lessons that exist, in their order.
LESSONS = tuple(lesson for lesson in COURSE if lesson.exists)

GALLERY_NOTEBOOK = "00_start.ipynb"


def neighbours(lesson: Lesson) -> tuple[Lesson | None, Lesson | None]:
    """The lessons before and after this one, of those that exist."""
    before = [one for one in LESSONS if one.number < lesson.number]
    after = [one for one in LESSONS if one.number > lesson.number]
    return (before[-1] if before else None), (after[0] if after else None)
