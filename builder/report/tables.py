"""Tables that the browser sorts and searches; without a script they are plain tables in the order given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from builder.report.markup import Html, join, tag

_MOST_AT_ONCE = 40  # rows; a table of more fills its frame, and is laid out after the figures


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: Its header.
        values: What it is sorted by: numbers, None for an empty cell, or texts.
        cells: What it shows; the values themselves where not given.
    """

    title: str
    values: Sequence[float | str | None]
    cells: Sequence[str] | None = None

    @property
    def numeric(self) -> bool:
        """Whether it holds numbers, which stand to the right."""
        return not any(isinstance(value, str) for value in self.values)


def sortable(key: str, title: str, columns: Sequence[Column], search: str) -> Html:
    """A table with a search field above it; the first column names the row.

    Args:
        key: Names it in the page.
        title: Its caption.
        columns: Each with a value for every row.
        search: What the field looks through, in words.
    """
    rows = len(columns[0].values)
    lines = [
        tag("tr", *(_cell(column, row, first=place == 0) for place, column in enumerate(columns)))
        for row in range(rows)
    ]
    table = tag(
        "table",
        tag("caption", title, class_="unseen"),
        tag("thead", tag("tr", *map(_header, columns))),
        tag("tbody", *lines),
        id=f"table-{key}",
    )
    field = tag("input", type="search", data_search=f"table-{key}", autocomplete="off", spellcheck="false")
    scroll = "scroll long" if rows > _MOST_AT_ONCE else "scroll"
    return join(
        tag(
            "p",
            tag("label", f"Search {search} ", field),
            tag("output", f"{rows:,} row{'' if rows == 1 else 's'}", data_count=f"table-{key}", aria_live="polite"),
            class_="search",
        ),
        tag("div", table, class_=scroll, role="region", tabindex=0, aria_label=f"{title}, scrollable"),
    )


def _header(column: Column) -> Html:
    kind = "number" if column.numeric else "text"
    button = tag("button", column.title, tag("span", class_="arrow", aria_hidden="true"), type="button")
    return tag("th", button, scope="col", aria_sort="none", data_kind=kind, class_="number" if column.numeric else None)


def _cell(column: Column, row: int, *, first: bool) -> Html:
    value = column.values[row]
    shown = column.cells[row] if column.cells is not None else _text(value)
    sort_by = None if value is None or value == shown else str(value)
    kind = "number" if column.numeric else None
    if first:
        return tag("th", shown, scope="row", data_value=sort_by, class_=kind)
    return tag("td", shown, data_value=sort_by, class_=kind)


def _text(value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.3g}"
