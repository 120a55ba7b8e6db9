"""What articles say about outliers, and what holds on this layer."""

from qviz.study.granularity import OutlierClaims
from qviz.ui.views.granularity_words import Moment
from qviz.ui.widgets import counted, number, percent


def claim_texts(claims: OutlierClaims, far: Moment | None) -> list[tuple[str, str]]:
    """(what articles say, what is so on this layer). `far`: the outlier of the page at 32×."""
    made = [
        (
            "Claimed: one row can be 10× as large as the rest",
            f"In this layer the widest row is {number(claims.widest_row, 3)}× the median row, "
            f"{'as wide as that' if claims.widest_row >= 10 else 'far from 10×'}. Its outliers are "
            f"single weights: the largest is {number(claims.peak, 3)}× the typical weight, the "
            f"next {number(claims.second, 3)}×.",
        ),
        (
            "Claimed: beside a value of 100, INT8 leaves those between −1 and 1 three codes",
            f"The arithmetic {'holds' if claims.used_at_100 == 3 else 'does not hold here'}: "
            "with one weight 100× as large as any other, the others use "
            f"{counted(claims.used_at_100, 'code')} of 255. But training left no such weight "
            f"here: the largest weight is {number(claims.peak / (claims.second or 1), 3)}× the "
            f"next, and the others use {claims.used}.",
        ),
        (
            "Claimed: groups make the squared error at 4 bits 3 to 10× smaller",
            f"Groups of {claims.group_size}, beside one scale for the matrix: "
            f"{number(claims.gain, 3)}×, {_within(claims.gain)}. They also cost more bits; "
            "whether that pays is the question of “equal bits”.",
        ),
    ]
    if far is not None:
        fine, coarse = far.pays[-1], far.pays[0]
        made.append(
            (
                "Claimed: small groups isolate the outlier and spare all other weights",
                f"Those outside the group are spared. With the outlier at {far.size}, its "
                f"{counted(fine.sharing, 'neighbour')} in the {fine.unit} are off by "
                f"{percent(fine.now)}; with one scale for the matrix all the others are off by "
                f"{percent(coarse.now)}. Inside the group the damage is of the same kind as "
                "before. Only fewer weights suffer it, for "
                f"{number(fine.scales - coarse.scales, 3)} bits more per weight.",
            )
        )
    return made


def _within(gain: float) -> str:
    return "less than that" if gain < 3 else "more than that" if gain > 10 else "as they say"
