"""Words held against numbers: what a sentence, caption or table says must follow from what is.

`holds(text, w=…, error=…)` is the one check. Every number that the text writes must be one of the
expected values, rounded as the reader sees it, in the order of reading; every expected value must
be there; and every word that points somewhere ("faster", "down from") must be claimed by `ways`,
with a number whose sign agrees. It knows nothing of `qviz.core.words`: it reads what stands there.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral

#: Factor from what is written to what a test expects: shares, seconds, bytes, operations.
UNITS = {
    "%": "0.01", "×": "1", "ns": "1e-9", "µs": "1e-6", "ms": "1e-3", "s": "1",
    "kB": "1e3", "MB": "1e6", "GB": "1e9", "TB": "1e12", "GB/s": "1e9", "TB/s": "1e12",
    "KiB": "1024", "MiB": "1048576", "GiB": "1073741824",
    "GFLOP/s": "1e9", "TFLOP/s": "1e12", "TOP/s": "1e12",
}  # fmt: skip

#: Words that say which of two things is larger, better or first.
POINTERS = (
    "more", "fewer", "less", "gains", "gain", "loses", "lose", "lost", "faster", "slower", "fast",
    "slow", "above", "below", "smaller", "larger", "better", "worse", "up", "down", "higher",
    "lower", "raises", "lowers", "longer", "shorter", "nearer", "further", "narrower", "wider",
    "symmetric", "asymmetric", "first", "second", "earlier", "later", "beyond", "within",
)  # fmt: skip

_GAPS = " \u00a0\u202f\u2009"  # usual, no-break, narrow no-break, thin
_NUMBER = re.compile(
    r"(?<![\w.])"  # a digit of a name (NF4, float32, Q4_K) is not a number
    r"(?P<sign>(?<![\d)²])[-−+])?"  # after a digit it is a dash: 2–8, 2-8
    r"(?P<size>∞|NaN|(?:\d{1,3}(?:[,\u2009\u202f]\d{3})+(?!\d)|\d+)?(?:(?<=\d)\.\d+|\.\d+)?"
    r"(?<=[\d])(?:e[-−+]?\d+)?)"
    rf"(?P<unit>[{_GAPS}]?(?:{'|'.join(sorted(map(re.escape, UNITS), key=len, reverse=True))})"
    r"(?![\w/]))?"
)


@dataclass(frozen=True)
class Number:
    """A number as it stands in a text: `value` in the unit that tests expect (a share for "5 %",
    seconds for "5 ms"), `digits` significant ones, and the text right `after` it."""

    value: float
    digits: int
    text: str
    after: str

    def is_(self, wanted: object, digits: int = 3) -> bool:
        """Whether it is `wanted`, rounded to as many digits as it shows, at least `digits`.

        A whole number must be exact; a pair is (value, what follows it).
        """
        if isinstance(wanted, tuple):
            value, follows = wanted
            return self.is_(value, digits) and self.after.lstrip(f"{_GAPS}-").startswith(follows)
        if isinstance(wanted, Integral):
            return self.value == wanted
        wanted = float(wanted)  # type: ignore[arg-type]
        if not math.isfinite(wanted) or not wanted:
            return self.value == wanted or (math.isnan(self.value) and math.isnan(wanted))
        kept = max(digits, self.digits)
        half = 0.5 * 10.0 ** (math.floor(math.log10(abs(wanted))) - kept + 1)
        # A tie may go either way, also one that float32 meets and the expected double just misses.
        return abs(self.value - wanted) <= half * (1 + 1e-6) + 4 * 2.0**-24 * abs(wanted)


def numbers_in(text: object) -> tuple[Number, ...]:
    """The numbers of a text, or of a table's cells, in the order of reading; subscripts apart.

    >>> [n.value for n in numbers_in("12.5 % of 1,024 weights, −1.2e−5 at U_{12}, 3–4×")]
    [0.125, 1024.0, -1.2e-05, 3.0, 4.0]
    """
    plain = _plain(text)
    return tuple(_read(plain, found) for found in _NUMBER.finditer(plain))


def _read(text: str, found: re.Match[str]) -> Number:
    unit = (found["unit"] or "").strip(_GAPS)
    size = re.sub("[,\u2009\u202f]", "", found["size"]).replace("−", "-")
    sign = -1 if found["sign"] in ("-", "−") else 1
    if size in ("∞", "NaN"):
        return Number(sign * float(size.replace("∞", "inf")), 1, found[0], text[found.end() :])
    exact = Decimal(size)
    value = float(sign * exact * Decimal(UNITS.get(unit, "1")))
    digits = len(str(abs(int(exact.scaleb(-int(exact.as_tuple().exponent))))))
    return Number(value, digits, found[0], text[found.end("size") :])


def holds(
    text: object,
    /,
    *,
    ways: Mapping[str, float | bool] | None = None,
    fixed: Iterable[str] = (),
    digits: int = 3,
    **expected: object,
) -> None:
    """AssertionError unless `text` says just this.

    text      a string, or the cells of a table in any nesting
    expected  name → value, in the order in which the text says them: an int exactly, a float as
              rounded to at least `digits` significant digits, a pair (value, what follows it)
    ways      "faster/slower" or "up/down/as before" → what decides: positive or True the first,
              negative or False the second, 0 the third. The chosen phrase must stand in the text
              and the others not; an empty phrase is none.
    fixed     phrases that no setting changes: their numbers and directions need no source

    >>> holds("5 %, up from 3 %", new=0.05, old=0.03, ways={"up from/down from": 0.05 - 0.03})
    """
    plain = numbered = _plain(text)
    for phrase in map(_plain, fixed):
        assert phrase in plain, f"{phrase!r} is not in:\n{plain}"
        plain = plain.replace(phrase, " ⋯ ")
        if numbers_in(phrase):
            numbered = numbered.replace(phrase, " ⋯ ")
    for phrases, way in (ways or {}).items():
        points(plain, phrases, way)
    claimed = plain
    for phrase in sorted((p for both in ways or {} for p in both.split("/")), key=len)[::-1]:
        claimed = re.sub(_whole(phrase), " ⋯ ", claimed) if phrase else claimed
    loose = re.findall("|".join(map(_whole, POINTERS)), claimed, re.IGNORECASE)
    assert not loose, f"directions without a source: {loose} in:\n{plain}"
    _holds_numbers(numbered, expected, digits)


def _holds_numbers(text: str, expected: Mapping[str, object], digits: int) -> None:
    said, wanted = numbers_in(text), list(expected.items())
    unsourced = [n.text for n in said if not any(n.is_(v, digits) for _, v in wanted)]
    missing = {k: v for k, v in wanted if not any(n.is_(v, digits) for n in said)}
    assert not unsourced, f"numbers without a source: {unsourced}; missing: {missing}; in:\n{text}"
    assert not missing, f"not said: {missing} in:\n{text}"
    right = [n.is_(v, digits) for n, (_, v) in zip(said, wanted, strict=False)]
    assert len(said) == len(wanted) and all(right), (
        f"said in another order: {[n.text for n in said]}, expected {dict(wanted)} in:\n{text}"
    )


def cut(text: str, *marks: str) -> list[str]:
    """What stands before, between and after the marks; AssertionError where one is not there, in
    this order. For a sentence that says "up from" twice.

    >>> cut("3 %, up from 2 %, at 4 bits", ", at ")
    ['3 %, up from 2 %', '4 bits']
    """
    parts, rest = [], text
    for mark in marks:
        before, found, rest = rest.partition(mark)
        assert found, f"{mark!r} does not follow in:\n{text}"
        parts.append(before)
    return [*parts, rest]


def points(text: object, phrases: str, way: float | bool) -> None:
    """AssertionError unless, of these phrases, the text says the one for `way` and no other.

    >>> points("2× faster than", "faster/slower/as fast", 2 - 1)
    """
    options = phrases.split("/")
    chosen = (not way) if _is_bool(way) else 0 if way > 0 else 1 if way < 0 else 2
    right = options[int(chosen)]
    longest = sorted(filter(None, options), key=len, reverse=True)  # "not worth it" before "worth"
    found = re.findall("|".join(map(_whole, longest)), _plain(text))
    assert set(found) == ({right} if right else set()), (
        f"{sorted(set(found)) or 'none'} of {options} is said where {way!r} asks for {right!r} "
        f"in:\n{text}"
    )


def _is_bool(way: object) -> bool:
    return isinstance(way, bool) or type(way).__name__ in ("bool_", "bool")


def _whole(phrase: str) -> str:
    """A pattern for a phrase that is no part of longer words."""
    start = r"(?<!\w)" if phrase[:1].isalnum() else ""
    return start + re.escape(phrase) + (r"(?!\w)" if phrase[-1:].isalnum() else "")


def _plain(text: object) -> str:
    """Cells joined, subscripts taken out."""
    if not isinstance(text, str):
        return " | ".join(map(_plain, text))  # type: ignore[call-overload]
    return re.sub(r"_\{\w+\}", "", text)
