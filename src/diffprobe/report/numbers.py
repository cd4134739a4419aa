"""How numbers are written: three significant digits, the interval in the decimals of its value, nothing that is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from diffprobe.measures.stats import Estimate

_WHOLE = 1e6  # counts below it are written out
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
#: The fixed columns of a flat estimate; a facet of the same name gets the prefix `facet_`.
COLUMNS = ("probe", "quantity", "value", "lo", "hi", "n", "unit", "reason")


class Shown(NamedTuple):
    """An estimate as text. `value` is a dash and `reason` not empty where it could not be measured."""

    value: str
    interval: str
    unit: str
    reason: str


def shown(estimate: Estimate) -> Shown:
    """Three significant digits, more only where the interval is so narrow that its ends would read alike."""
    value = finite(estimate.value)
    unit = "" if estimate.unit == "1" else estimate.unit
    if value is None:
        why = estimate.reason or ("not measured" if estimate.value is None else "the value is not a finite number")
        return Shown("—", "", unit, why)
    lo, hi = finite(estimate.lo), finite(estimate.hi)
    if lo is None and hi is None and value.is_integer() and 1 <= abs(value) < _WHOLE:
        return Shown(number(int(value)), "", unit, "")  # a count, such as the latents of a mixture
    ends = [end for end in (lo, hi) if end is not None]
    power = _power(max([abs(value), *(abs(end) for end in ends if value == 0)]))
    shift = power if power < -4 or power > 5 else 0
    decimals = max(0, 2 - (power - shift))
    if lo is not None and hi is not None and hi > lo:
        decimals = min(max(decimals, shift - _power((hi - lo) / 2)), decimals + 3)

    def write(number: float | None, missing: str) -> str:
        return missing if number is None else _fixed(number / 10.0**shift, decimals)

    scale = f" ×10{str(shift).translate(_SUPERSCRIPT)}" if shift else ""
    interval = f"[{write(lo, '−∞')}, {write(hi, '∞')}]{scale}" if ends else ""
    return Shown(write(value, "") + scale, interval, unit, "")


def number(value: object) -> str:
    """A number beside a picture: integers whole, others with three significant digits; text stays text."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral):
        return f"{int(value):,}".replace("-", "−")
    estimate = Estimate("", "", float(value), None, None, 1)
    return shown(estimate).value


def label(value: object) -> str:
    """A value that names a subset or a series: a number as short as it can be, text as it is."""
    return f"{float(value):g}" if isinstance(value, Real) and not isinstance(value, bool) else str(value)


def flat(estimate: Estimate) -> dict[str, Any]:
    """An estimate as one flat, JSON-ready row: COLUMNS, with its facets after the quantity."""
    row = {name: plain(getattr(estimate, name)) for name in COLUMNS}
    facets = {f"facet_{name}" if name in COLUMNS else name: plain(item) for name, item in estimate.facets.items()}
    return {"probe": row.pop("probe"), "quantity": row.pop("quantity"), **facets, **row}


def plain(value: Any) -> Any:
    """The same value in JSON's own types; what is not finite is null, what JSON does not know is text."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Integral):
        return int(value)
    return finite(value) if isinstance(value, Real) else str(value)


def finite(value: Any) -> float | None:
    """The number, or None where there is none to show: null, NaN, an infinity."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _power(magnitude: float) -> int:
    """The decimal exponent of the leading digit; 0 for 0."""
    return math.floor(math.log10(magnitude)) if magnitude > 0 else 0


def _fixed(value: float, decimals: int) -> str:
    text = f"{value:,.{decimals}f}"
    return text.removeprefix("-") if not text.strip("-0.,") else text.replace("-", "−")
