"""Prediction: a question asked before the page shows the answer, judged by what was computed."""

from collections.abc import Callable, Sequence
from typing import Any

from qviz.ui.widgets import Caption, Choice, section

YOUR_GUESS = "your guess"


class Prediction:
    """What a learner is asked before the page shows the answer.

    judge   (number of the answer) → words, computed from what is shown
    tells   judge(−1) has words for who has looked without guessing
    reveal  draws what gives the answer away; called when `revealed` changes

    `revealed` is whether the answer may be seen: after a guess, or once the learner has moved the
    control that shows it. Another layer means another question: `reset` hides the answer again.
    """

    def __init__(
        self,
        question: str,
        answers: Sequence[str],
        judge: Callable[[int], str],
        reveal: Callable[[], None],
        *,
        tells: bool = False,
    ) -> None:
        self.control = Choice(question, [YOUR_GUESS, *answers])
        self.verdict = Caption()
        self.verdict.add_class("qv-aside")
        self.revealed = False
        self._judge, self._reveal, self._tells = judge, reveal, tells
        self.box = section("Predict", self.control, self.verdict)

    @property
    def guessed(self) -> bool:
        return int(self.control.index) > 0

    def answer(self) -> None:
        """The learner has chosen an answer, or something it is judged by has changed."""
        if self.guessed:
            self.moved()
        told = self.guessed or (self._tells and self.revealed)
        self.verdict.set_texts(self._judge(int(self.control.index) - 1) if told else "")

    def moved(self) -> None:
        """The learner has already seen the answer, so there is nothing left to hide."""
        if not self.revealed:
            self.revealed = True
            self._reveal()
            if self._tells and not self.guessed:
                self.answer()

    def keep(self) -> Any:
        """All that `back` needs."""
        return list(self.control.options), int(self.control.index), self.revealed

    def back(self, kept: Any) -> None:
        """Restore the earlier state; what was drawn meanwhile is drawn again."""
        options, index, revealed = kept
        self.control.set_options(options, index)
        if revealed != self.revealed:
            self.revealed = revealed
            self._reveal()
        self.answer()

    def reset(self, answers: Sequence[str] | None = None, *, possible: bool = True) -> None:
        """Ask again; the caller draws. `possible`: there is something to judge a guess by."""
        self.revealed = False
        options: Any = self.control.options if answers is None else [YOUR_GUESS, *answers]
        self.control.set_options(options, 0)
        self.control.disabled = not possible
        self.verdict.set_texts("")
