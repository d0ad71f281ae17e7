"""Dotted names and the one selector that every rule uses.

Init rules, freeze rules and statistics filters choose parameters in the same way, so that a pattern learnt once
works everywhere. A selector is plain data: it refuses unknown fields, and selects by name, by the owning layer's
kind, by the number of dimensions and by whether the parameter is trainable.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

Patterns = str | tuple[str, ...]


def paths_to(name: str) -> list[str]:
    """A dotted name and the paths that it lies in, the outermost first; none of the empty one.

    >>> paths_to("h.0.fc")
    ['h', 'h.0', 'h.0.fc']
    """
    parts = name.split(".") if name else []
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


class Selectable(Protocol):
    """What a selector looks at."""

    @property
    def name(self) -> str:
        """Dotted name, as in the `state_dict`."""
        ...

    @property
    def kind(self) -> str:
        """Class name of the owning layer, or `Parameter`."""
        ...

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        ...

    @property
    def trainable(self) -> bool:
        """Whether an optimizer moves it."""
        ...


def matches(name: str, patterns: Patterns) -> bool:
    """Whether a dotted name fits a glob or one of several; `*` crosses dots.

    >>> matches("h.0.mlp.c_proj.weight", "h.*.weight")
    True
    """
    listed = (patterns,) if isinstance(patterns, str) else patterns
    return any(fnmatchcase(name, pattern) for pattern in listed)


class Selector(BaseModel):
    """Chooses parameters; every field that is given must hold.

    >>> Selector(match="*.weight", min_ndim=2).words
    "match: '*.weight', min_ndim: 2"
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    match: Patterns = Field("*", description="Glob or list of globs over dotted names; `*` crosses dots.")
    except_: Patterns = Field((), alias="except", description="Globs over names that are left out.")
    kind: Patterns | None = Field(
        None, description="Glob over the owning layer's class name; `Parameter` for a raw one."
    )
    ndim: StrictInt | None = Field(None, ge=0, description="Exact number of dimensions.")
    min_ndim: StrictInt | None = Field(None, ge=0, description="Least number of dimensions.")
    max_ndim: StrictInt | None = Field(None, ge=0, description="Greatest number of dimensions.")
    trainable: StrictBool | None = Field(None, description="Only trainable (true) or only frozen (false) parameters.")

    def selects(self, parameter: Selectable) -> bool:
        """Whether this selector chooses the parameter."""
        return (
            matches(parameter.name, self.match)
            and not (self.except_ and matches(parameter.name, self.except_))
            and (self.kind is None or matches(parameter.kind, self.kind))
            and (self.ndim is None or parameter.ndim == self.ndim)
            and (self.min_ndim is None or parameter.ndim >= self.min_ndim)
            and (self.max_ndim is None or parameter.ndim <= self.max_ndim)
            and (self.trainable is None or parameter.trainable == self.trainable)
        )

    @property
    def words(self) -> str:
        """The fields that are given, as a config has them."""
        given = self.model_dump(by_alias=True, exclude_unset=True)
        return ", ".join(f"{name}: {value!r}" for name, value in given.items() if name in FIELDS) or "match: '*'"


FIELDS = tuple(field.alias or name for name, field in Selector.model_fields.items())
"""The keys of a selector, as a config has them."""
