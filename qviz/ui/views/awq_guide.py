"""What the AWQ lesson lets its readers try, and what its parts are called."""

from qviz.ui.views.guide_steps import AtLeast, Is, Moved, Step

CHANNELS, ONE, SEARCH = "which channels", "one channel", "search"
CLIP, OTHERS = "clip and fold", "beside others"

GUIDE = (
    Step(
        "Keep some channels",
        "Drag “Channels kept in 16 bits” to the right. A few columns of the error picture were far "
        "louder than the rest: they vanish first. Nothing in the picture of the weights told you "
        "where they are. This is the experiment with which the paper begins, not what AWQ stores.",
        {"part": CHANNELS},
        {"kept": Is("100 %")},
    ),
    Step(
        "Make them as loud as in a large model",
        "Small models have mild channels. Move “Loudest channels, made louder” to 16×: inputs "
        "grow, the weights that meet them shrink, and the layer computes the same. How "
        "much of the error do so few channels make now?",
        {"part": CHANNELS, "kept": "1 %"},
        {"loud": Is("16×")},
    ),
    Step(
        "Multiply one channel",
        "All weights stay in few bits. Drag “Factor s on one channel”: its own errors fall as 1/s, "
        "until its weights stretch their groups and everybody in them pays. Where is the lowest "
        "point of the whole layer?",
        {"part": ONE, "loud": "8×"},
        {"part": Is(ONE), "factor": Is("16")},
    ),
    Step(
        "Search for all factors",
        "One number r decides all factors. Play the twenty candidates. Compare what the search "
        "minimises with what held-out text says: do they agree on the best r?",
        {"part": SEARCH},
        {"part": Is(SEARCH), "candidate": AtLeast(19)},
    ),
    Step(
        "Find a failure",
        "Choose “failure: A channel that calibration never heard” under “A second search beside "
        "it”. Its own text sees nothing wrong. By which number could you have known?",
        {"part": SEARCH, "candidate": "19"},
        {"part": Is(SEARCH), "beside": Is("silent")},
    ),
    Step(
        "Ask who wins",
        "All methods at the same true bits. Compare both charts: GPTQ is fitted to its own text "
        "more closely than AWQ is. Does that cost it anything on held-out text, and at which "
        "width?",
        {"part": OTHERS},
        {"part": Is(OTHERS), "width": Moved()},
    ),
)
