"""HTML in which text is escaped unless it is HTML already: escaping is a matter of types, not of care.

>>> str(tag("p", "a < b", tag("b", "!"), class_="note", hidden=False))
'<p class="note">a &lt; b<b>!</b></p>'
"""

from __future__ import annotations

from html import escape

_VOID = frozenset({"meta", "link", "input", "br"})


class Html(str):
    """Text that is HTML."""

    __slots__ = ()


def tag(element: str, /, *children: str, **attributes: str | int | float | bool | None) -> Html:
    """An element.

    Args:
        element: Its name.
        children: `Html` as it is, any other text escaped.
        attributes: `class_` is `class`, `data_value` is `data-value`; None and False leave one out, True gives it
            no value.
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items())
    if element in _VOID:
        return Html(f"<{element}{given}>")
    return Html(f"<{element}{given}>{join(*children)}</{element}>")


def join(*children: str) -> Html:
    """Children one after the other, text among them escaped."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def _attribute(key: str, value: str | int | float | bool | None) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
