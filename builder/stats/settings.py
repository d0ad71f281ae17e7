"""What the settings of statistics may be, and what is wrong with them, in the words of a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError
from torch import nn

from builder.errors import BuilderError, Problem, did_you_mean, raise_all
from builder.names import FIELDS, Patterns, Selector, matches
from builder.stats.columns import SCALARS
from builder.stats.outputs import ACTIVATIONS, weight_makers
from builder.stats.record import chosen_parameters
from builder.stats.verdicts import listed

ACTIONS = ("stop", "warn", "ignore")


def parameters_of(model: nn.Module, select: Selector) -> dict[str, nn.Parameter]:
    """The parameters that statistics are of.

    Raises:
        BuilderError: If the selector chooses nothing, with the fields without which it would choose something; or a
            parameter that cannot be measured.
    """
    try:
        return chosen_parameters(model, select)
    except BuilderError as err:
        hints = [_without(model, select, field) for field in sorted(select.model_fields_set)]
        if select.model_fields_set <= {"match"} or not any(hints):
            raise
        raise BuilderError(err.subject, [replace(err.problems[0], hint="\n".join(filter(None, hints)))]) from err


def _without(model: nn.Module, select: Selector, field: str) -> str:
    """What a selector would choose without one of its fields; nothing where that is nothing as well."""
    others = {name: getattr(select, name) for name in select.model_fields_set - {field}}
    try:
        names = [*chosen_parameters(model, Selector(**others))]
    except BuilderError:
        return ""
    return f"without {field.rstrip('_')} it matches {listed(names)}"


def check_outputs(model: nn.Module, patterns: Patterns) -> None:
    """Refuses globs that fit neither a layer nor an activation that a layer may call as a function (`fc1.relu()`).

    Raises:
        BuilderError: Of each such glob.
    """
    makers = weight_makers(model)
    paths = [path for path, module in model.named_modules() if module not in makers]
    functions = [f"{path}.{name}()".lstrip(".") for path in paths for name in ACTIVATIONS]
    layers = [path for path in paths if path]
    raise_all(
        "statistics",
        [
            Problem("stats.outputs", f"{pattern!r} matches no layer", did_you_mean(pattern, layers) or "there is none")
            for pattern in ((patterns,) if isinstance(patterns, str) else patterns)
            if not any(matches(path, pattern) for path in (*layers, *functions))
        ],
    )


def selector(select: Mapping[str, Any] | None) -> Selector:
    """The selector that a setting `select` means; null and the empty list are as if not given."""
    plain: Any = OmegaConf.to_container(select, resolve=True) if isinstance(select, DictConfig) else dict(select or {})
    return Selector.model_validate({key: value for key, value in plain.items() if value not in (None, [], ())})


def faults(**given: object) -> list[Problem]:
    """What is wrong with settings, by their names in a config or in `builder.stats.callback.ParameterStatistics`."""
    return [problem for name, value in given.items() for problem in _CHECKS[name](f"stats.{name}", value)]


def _selector(address: str, select: Any) -> list[Problem]:
    if select is not None and not isinstance(select, Mapping | DictConfig):
        hint = f"{{match: {select!r}}}" if isinstance(select, str) else "{match: GLOB}"
        return [Problem(address, f"must be a selector, given {select!r}", f"write {hint}")]
    try:
        selector(select)
    except ValidationError as err:
        found = {error["loc"][0]: _field(address, error["loc"], error["msg"], error["input"]) for error in err.errors()}
        return list(found.values())
    return []


def _field(address: str, location: tuple[int | str, ...], message: str, given: object) -> Problem:
    name = str(location[0])
    hint = "" if name in FIELDS else did_you_mean(name, FIELDS)
    return Problem(f"{address}.{name}", f"{message}, given {given!r}", hint)


def _whole_number(address: str, value: object) -> list[Problem]:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return []
    return [Problem(address, f"must be a whole number of at least 1, given {value!r}")]


def _whole_number_or_none(address: str, value: object) -> list[Problem]:
    return [] if value is None else _whole_number(address, value)


def _bool(address: str, value: object) -> list[Problem]:
    return [] if isinstance(value, bool) else [Problem(address, f"must be true or false, given {value!r}")]


def _share(address: str, value: object) -> list[Problem]:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1):
        return []
    return [Problem(address, f"must be above 0 and at most 1, given {value!r}", "0.02 is 2 %; null: any")]


def _globs(address: str, patterns: object) -> list[Problem]:
    if patterns is None or isinstance(patterns, str):
        return []
    if isinstance(patterns, Sequence) and all(isinstance(pattern, str) for pattern in patterns):
        return []
    return [Problem(address, f"must be a glob or a list of globs, given {patterns!r}", "'*' is every layer")]


def _directory(address: str, directory: object) -> list[Problem]:
    if directory is None or isinstance(directory, str | Path):
        return []
    return [Problem(address, f"must be a path, given {directory!r}", "the run directory; None: the trainer's")]


def _measures(address: str, measures: object) -> list[Problem]:
    if isinstance(measures, str | bytes) or not isinstance(measures, Sequence):
        hint = f"[{measures}]" if isinstance(measures, str) else "as in [rms, update_ratio]; []: none"
        return [Problem(address, f"must be a list of measures, given {measures!r}", hint)]
    return [
        Problem(address, f"unknown measure {measure!r}", did_you_mean(measure, SCALARS))
        for measure in measures
        if measure not in SCALARS
    ]


def _action(address: str, action: object) -> list[Problem]:
    return [] if action in ACTIONS else [Problem(address, f"unknown action {action!r}", did_you_mean(action, ACTIONS))]


_CHECKS: dict[str, Callable[[str, Any], list[Problem]]] = {
    "enabled": _bool,
    "on_nonfinite": _action,
    "every_n_steps": _whole_number,
    "flush_every": _whole_number,
    "select": _selector,
    "directory": _directory,
    "to_loggers": _measures,
    "outputs": _globs,
    "slower_every": _whole_number,
    "distance": _bool,
    "spectral_norm": _bool,
    "effective_rank": _whole_number_or_none,
    "max_overhead": _share,
    "stacked": _bool,
}
IN_CONFIG = _CHECKS.keys() - {"directory", "stacked"}  # those come with the run
