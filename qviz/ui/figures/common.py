"""What the figures of all lessons share: the colours' meanings and how axes look."""

import plotly.graph_objects as go

ORIGINAL, CODES, ERROR = "var(--qv-original)", "var(--qv-codes)", "var(--qv-error)"
NOW, WAIT, INK = "var(--qv-now)", "var(--qv-wait)", "var(--qv-ink)"


def axes_layout(x: str, y: str) -> go.Layout:
    """Titled axes that neither zoom nor pan, without a legend."""

    def axis(title: str) -> dict[str, object]:
        return {
            "title": {"text": title, "font": {"size": 12}, "standoff": 6},
            "tickfont": {"size": 11},
            "fixedrange": True,  # dragging on a phone must scroll the page, not zoom the chart
            "zeroline": False,
        }

    return go.Layout(
        margin={"l": 48, "r": 8, "t": 6, "b": 36},
        xaxis=axis(x),
        yaxis=axis(y),
        showlegend=False,
        bargap=0,
    )
