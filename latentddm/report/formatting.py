"""Numbers, times and foreign text in the notation of the report, and its sections."""

from __future__ import annotations

import html
import math

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SMALLEST_EXPONENT = -4  # of a number written without a power of ten
NOT_AVAILABLE = "n/a"


def text(value: object) -> str:
    """Anything as HTML text, also within a quoted attribute."""
    return html.escape(str(value))


def number(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits: 3.20, 0.0312, 1,234, 4.12 · 10⁻⁵."""
    if not math.isfinite(value):
        return NOT_AVAILABLE
    if value == 0:
        return "0"
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    exponent = int(power)
    if exponent < _SMALLEST_EXPONENT:
        shown = f"{mantissa} · 10{str(exponent).translate(_SUPERSCRIPTS)}"
    else:
        shown = f"{value:,.{max(digits - 1 - exponent, 0)}f}"
    return shown.replace("-", "−")


def interval(measured: dict[str, float]) -> str:
    """The interval of a measured value: 3.00 to 3.40."""
    return f"{number(measured['low'])} to {number(measured['high'])}"


def ratio(value: float, other: float) -> str:
    """The quotient of two values, 0.24×; not available if one is negative or `other` is zero."""
    if not (0 <= value < math.inf and 0 < other < math.inf):
        return NOT_AVAILABLE
    return f"{number(value / other, digits=2)}×"


def percent(share: float) -> str:
    """A share in 0 .. 1 in whole per cent: 48 %."""
    return f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """A time in suitable units: 2.0 ms, 41.2 s, 3 min 10 s, 1 h 2 min."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 draw, 2,400 images."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def section(title: str, content: str) -> str:
    """A section of the page; content: HTML."""
    return f"<section><h2>{text(title)}</h2>{content}</section>"
