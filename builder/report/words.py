"""Numbers, times and rows of the parameter table as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from builder.report.read import number


def shape_of(row: Mapping[str, Any]) -> str:
    """Its sizes: `512 × 64`, or `scalar`."""
    shape = row.get("shape")
    return " × ".join(map(str, shape)) or "scalar" if isinstance(shape, list) else ""


def numel_of(row: Mapping[str, Any]) -> float | None:
    """Its values; None for another name of a parameter, which is counted once."""
    return None if row.get("tied_to") else number(row.get("numel"))


def count_of(row: Mapping[str, Any]) -> str:
    """Its values in words."""
    values = numel_of(row)
    return "" if values is None else f"{values:,.0f}"


def state_of(row: Mapping[str, Any]) -> str:
    """As `builder.table.state` says it, of a row that was read back."""
    if row.get("kind") == "buffer":
        return "saved" if row.get("persistent") else "not saved"
    if row.get("tied_to"):
        return f"tied to {row['tied_to']}{' (transposed)' if row.get('transposed') else ''}"
    if row.get("trainable") is False:
        return f"frozen ({row['frozen_by']})" if row.get("frozen_by") else "frozen"
    held = row.get("held")
    if isinstance(held, list) and held:
        return f"frozen {', '.join(map(str, held))}"
    return "trainable" if row.get("trainable") else ""


def value_text(value: object) -> str:
    """A number as a person reads it; anything else as it is.

    >>> value_text(0.97222), value_text(12345), value_text(1.5e-7), value_text(float("nan")), value_text(None)
    ('0.9722', '12,345', '1.5e-07', 'nan', 'nan')
    """
    if value is None:
        return "nan"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value) or value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.4f}".rstrip("0").rstrip(".") if math.isfinite(value) else str(value)
    return f"{value:.3g}"


def finite_number(text: str) -> float | None:
    """The finite number that a text is, None for any other text.

    >>> finite_number("1e-3"), finite_number("nan"), finite_number("adam")
    (0.001, None, None)
    """
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(5.99), duration(754), duration(7_300)
    ('6.0 s', '12 min 34 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
