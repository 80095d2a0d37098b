"""Numbers as a reader wants them: with a unit, and never with more digits than the interval supports."""

from __future__ import annotations

import math
from dataclasses import dataclass

MISSING = "–"


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; NaN ends where none could be given."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interval's width, NaN where there is none."""
        return (self.high - self.low) / 2


def decimals_for(uncertainty: float) -> int:
    """Decimals that show two digits of the uncertainty, the most that it deserves (GUM, JCGM 100:2008, 7.2.6)."""
    return 1 - math.floor(math.log10(uncertainty))


def fixed(value: float, decimals: int) -> str:
    """The value rounded to so many decimals (negative: to tens, hundreds …), with thousands separators."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    text = f"{round(value, decimals):,.{max(decimals, 0)}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.replace("-", "")


def significant(value: float | None, digits: int = 3) -> str:
    """The value to so many significant digits; powers of ten outside 1e-4 … 1e7."""
    if value is None:
        return MISSING
    if not math.isfinite(value) or value == 0:
        return fixed(value, 0)
    if not 1e-4 <= abs(value) < 1e7:
        return scientific(value, digits)
    exponent = math.floor(math.log10(float(f"{abs(value):.{digits - 1}e}")))
    return fixed(value, digits - 1 - exponent)


def scientific(value: float, digits: int) -> str:
    """Such as '3.1e−7'."""
    if not math.isfinite(value) or value == 0:
        return fixed(value, 0)
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")


def interval(value: Interval | None) -> str:
    """Such as '4.12 [4.01, 4.24]'; the value alone, to three digits, where there is no interval."""
    if value is None:
        return MISSING
    if not math.isfinite(value.half) or value.half <= 0:
        return significant(value.value)
    decimals = decimals_for(value.half)
    middle, low, high = (fixed(part, decimals).replace(",", "") for part in (value.value, value.low, value.high))
    return f"{middle} [{low}, {high}]"


def plus_minus(value: Interval | None) -> str:
    """The short form for a terminal, such as '4.12 ±0.12': half the interval's width."""
    if value is None or not math.isfinite(value.half) or value.half <= 0:
        return interval(value)
    decimals = decimals_for(value.half)
    return f"{fixed(value.value, decimals)} ±{fixed(value.half, decimals)}"


def rate(value: Interval | None) -> str:
    """The value alone, to three digits or to as few as its interval supports."""
    if value is None:
        return MISSING
    if not math.isfinite(value.half) or value.half <= 0 or not math.isfinite(value.value) or value.value == 0:
        return significant(value.value)
    three = 2 - math.floor(math.log10(abs(value.value)))
    return fixed(value.value, min(three, decimals_for(value.half)))


def percent(ratio: float | None) -> str:
    """What a ratio adds or takes away, such as '+12 %'."""
    if ratio is None:
        return MISSING
    text = fixed(100 * (ratio - 1), 0)
    return f"{text} %" if text.startswith(("−", "0")) else f"+{text} %"


def count(value: float | None) -> str:
    """A number of things to three digits, such as '812 k' or '1.24 M'."""
    return _scaled(value, 1000, ["", "k", "M", "G", "T"])


def size(value: float | None) -> str:
    """Bytes to three digits, such as '96.0 KiB'."""
    return _scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"])


def seconds(value: float | None) -> str:
    """A time, such as '0.42 s', '48.1 s' or '7 min 03 s'."""
    if value is None or not math.isfinite(value):
        return MISSING if value is None else fixed(value, 0)
    if value < 100:
        return f"{value:.{1 if value >= 10 else 2}f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _scaled(value: float | None, base: int, units: list[str]) -> str:
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return fixed(value, 0)
    power = 0
    while power < len(units) - 1 and abs(float(f"{value:.3g}")) >= 1000:
        value, power = value / base, power + 1
    text = str(value) if isinstance(value, int) else significant(value)
    return f"{text} {units[power]}".strip()
