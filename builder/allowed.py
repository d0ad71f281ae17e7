"""Dotted names that a caller allows: what `allow=["my_package"]` lets a model file name, and nothing else.

A config cannot extend the list. The object that a name leads to must itself be defined under an allowed prefix, so that
a package that imports `os` does not lend it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from builder.errors import Problem, did_you_mean, raise_all

_DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")
_PREFIX = re.compile(r"\w+(\.\w+)*")


def is_dotted(name: str) -> bool:
    """Whether a text is a dotted name of public parts, such as `timm.layers.DropPath`."""
    return _DOTTED.fullmatch(name) is not None


def prefixes(allow: object) -> list[str]:
    """What a caller allows, as a list; one prefix may be given by itself.

    Raises:
        BuilderError: Something that is no dotted name among them.
    """
    given = [allow] if isinstance(allow, str) else list(allow) if isinstance(allow, Iterable) else [allow]
    hint = 'a package, or a dotted name in one: allow=["my_package"]'
    wrong = [name for name in given if not isinstance(name, str) or not _PREFIX.fullmatch(name)]
    raise_all("arguments", [Problem("allow", f"got {name!r}", hint) for name in wrong])
    return [str(name) for name in given]


def is_allowed(name: str, allow: Sequence[str]) -> bool:
    """Whether a dotted name stands under one of some prefixes; whole words count: `timm` allows no `timmy`."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in allow)


def allowed_object(
    name: str, allow: Sequence[str], address: str, kind: str, fits: Callable[[Any], bool]
) -> tuple[Any, list[Problem]]:
    """What an allowed dotted name leads to, or what is wrong with it; nothing is imported that is not allowed.

    Args:
        name: The dotted name.
        allow: Allowed prefixes.
        address: Of the name in the model file.
        kind: What is looked for, in a word: function, layer class.
        fits: Whether an object is of that kind.
    """
    if not (is_dotted(name) and is_allowed(name, allow)):
        hint = 'allow its package: builder.build(..., allow=["my_package"])'
        hint = f"allowed: {', '.join(allow)}" if allow else hint
        return None, [Problem(address, f"{kind} {name!r} is not allowed", hint)]
    module_name, _, last = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as err:
        return None, [Problem(address, f"{module_name!r} cannot be imported: {err}", "install it, or mend the name")]
    found = vars(module).get(last)
    if not fits(found):
        known = [key for key, value in vars(module).items() if fits(value)]
        return None, [Problem(address, f"{module_name!r} has no {kind} {last!r}", did_you_mean(last, known))]
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if not is_allowed(home, allow):
        what = f"{name!r} is {home}, which is not allowed"
        return None, [Problem(address, what, f"allowed: {', '.join(allow)}")]
    return found, []
