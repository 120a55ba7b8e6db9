"""Lesson 9's parts, its second runs, and what to try on the page."""

from qviz.ui.views.guide_steps import AtLeast, Is, Moved, Step

ENCODE, TYPES_PART, FILE = "encode", "types", "file"
NOTHING, IMPORTANCE = "nothing", "with importance"
NO_PASS, OUTLIER, UNREACHED, PAIRS = (
    "second pass left out", "one weight 100×", "importance 0 here", "bytes read in pairs",
)  # fmt: skip
BESIDE = (NOTHING, IMPORTANCE, NO_PASS, OUTLIER, UNREACHED, PAIRS)
FACTOR = 100.0  # by which the outlier of the zoo grows

GUIDE = (
    Step(
        "Walk from weights to bytes",
        "Press “One step forward” again and again, or play. Watch the error curve find a better "
        "scale than the plain one, then see what storing that scale in a few bits takes back.",
        {"part": ENCODE},
        {"part": Is(ENCODE), "step": AtLeast(31)},
    ),
    Step(
        "Leave the second pass out",
        "Set “Beside it” to “second pass left out” and step to the end. The codes that the search "
        "found belong to scales that nobody stores. How many of them change in the second pass?",
        {"part": ENCODE},
        {"part": Is(ENCODE), "beside": Is(NO_PASS), "step": AtLeast(28)},
    ),
    Step(
        "Let one weight spoil a super-block",
        "Set “Beside it” to “one weight 100×” and step to the end. Seven sub-blocks did not "
        "change. Why do they suffer? Look at the integers that their scales become.",
        {"part": ENCODE},
        {"part": Is(ENCODE), "beside": Is(OUTLIER), "step": AtLeast(24)},
    ),
    Step(
        "Pay for bits",
        "Drag “Type” from one end to the other. Which type of 4.5 bits comes closest, the one with "
        "a search or the one without? Then judge by “outputs”: whom does importance help there?",
        {"part": TYPES_PART},
        {"part": Is(TYPES_PART), "kind": Moved()},
    ),
    Step(
        "K names the block, M the mix",
        "Move “File type” between Q4_K_S and Q4_K_M. The block is the same; which tensors change "
        "theirs, in which layers?",
        {"part": FILE, "file": "Q4_K_S"},
        {"part": Is(FILE), "file": Is("Q4_K_M")},
    ),
    Step(
        "A file with almost no Q4_K in it",
        "Set “Model shape” to Qwen2.5-0.5B. Its rows have 896 weights, no multiple of 256. What "
        "does llama.cpp take instead, and how many bits does this file have then?",
        {"part": FILE},
        {"part": Is(FILE), "model_shape": Is("Qwen2.5-0.5B")},
    ),
)
