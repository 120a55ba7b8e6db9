"""Numbers as qviz writes them, on pages and in messages: one spelling for all."""

import math


def number(value: float, digits: int = 4) -> str:
    """A number with `digits` significant digits and a true minus sign.

    >>> number(-0.0412345), number(12), number(1.5e-7), number(float("nan"))
    ('−0.04123', '12', '1.5e−7', 'NaN')
    """
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return "0" if text == "-0" else text.replace("-", "−")


def percent(share: float, digits: int = 3) -> str:
    """A share in percent.

    >>> percent(0.12345)
    '12.3 %'
    """
    return f"{number(100 * share, digits)} %"


def signed(value: float, digits: int = 3) -> str:
    """A change, always with its sign.

    >>> signed(0.25), signed(-0.25), signed(0)
    ('+0.25', '−0.25', '0')
    """
    return f"+{number(value, digits)}" if value > 0 else number(value, digits)


def counted(n: int, noun: str) -> str:
    """A count with its noun.

    >>> counted(1, "token"), counted(2, "token")
    ('1 token', '2 tokens')
    """
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def exactly(value: float) -> str:
    """A number with the digits that tell it from every other float64, and no more.

    >>> exactly(0.1015625), exactly(-(2.0**-24)), exactly(448)
    ('0.1015625', '−5.960464477539063e−8', '448')
    """
    value = float(value)
    if not math.isfinite(value):
        return number(value)
    mantissa, _, exponent = repr(value).partition("e")
    text = mantissa.removesuffix(".0") + (f"e{int(exponent)}" if exponent else "")
    return text.replace("-", "−")
