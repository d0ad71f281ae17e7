"""Checks of the arguments that a recipe's YAML hands to Python.

YAML turns `no` into false and false passes for zero, so each number is checked for being one. The functions return
problems rather than raise, so that a user reads about all wrong arguments at once.
"""

from __future__ import annotations

from importlib.util import find_spec

from builder.errors import BuilderError, Problem

LARGEST_SEED = 2**32 - 1  # what NumPy, and with it scikit-learn, takes


def check_whole(address: str, value: object, least: int = 1, most: int | None = None) -> list[Problem]:
    """Problems of a value that has to be a whole number from `least` to `most`.

    >>> check_whole("data.context", 0)[0].what
    '0 given, a whole number of at least 1 needed'
    """
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= (value if most is None else most):
        return []
    needed = f"of at least {least}" if most is None else f"from {least} to {most}"
    return [Problem(address, f"{value!r} given, a whole number {needed} needed")]


def check_seed(address: str, value: object) -> list[Problem]:
    """Problems of a value that has to be a seed."""
    return check_whole(address, value, least=0, most=LARGEST_SEED)


def check_share(address: str, value: object) -> list[Problem]:
    """Problems of a value that has to be a share of a data set.

    >>> check_share("data.validation", 1.5)[0].what
    '1.5 given, a share strictly between 0 and 1 needed'
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1:
        return []
    return [Problem(address, f"{value!r} given, a share strictly between 0 and 1 needed")]


def check_installed(subject: str, address: str, module: str, package: str) -> None:
    """Raises a `BuilderError` where a module of the extra `recipes` is not installed."""
    if find_spec(module) is None:
        what = f"needs the package '{package}', which is not installed"
        raise BuilderError(subject, [Problem(address, what, hint="pip install 'builder[recipes]'")])
