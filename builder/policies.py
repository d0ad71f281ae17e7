"""The init policies by name: their arguments, and what they need of a parameter.

Most names and arguments are those of `torch.nn.init` without the underscore; torch itself is not needed to read them.
A name with a dot is a function of the user's own, under a prefix that the caller allows.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from builder.allowed import is_dotted
from builder.errors import Problem, did_you_mean

NONLINEARITIES = (
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "sigmoid", "tanh", "relu", "leaky_relu", "selu",
)  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """What an init policy takes and needs.

    Attributes:
        arguments: Its arguments with their defaults; `REQUIRED` marks those without.
        needs_fans: Whether it scales by fan-in or fan-out.
        min_ndim: Least number of dimensions of a parameter that it fills.
        max_ndim: Greatest number, or None for any.
        random: Whether it draws random numbers.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs_fans: bool = False
    min_ndim: int = 0
    max_ndim: int | None = None
    random: bool = True


REQUIRED = object()
_KAIMING = {"a": 0.0, "mode": "fan_in", "nonlinearity": "leaky_relu"}

POLICIES: dict[str, Policy] = {
    "uniform": Policy({"a": 0.0, "b": 1.0}),
    "normal": Policy({"mean": 0.0, "std": 1.0}),
    "trunc_normal": Policy({"mean": 0.0, "std": 1.0, "a": -2.0, "b": 2.0}),
    "constant": Policy({"val": REQUIRED}, random=False),
    "ones": Policy(random=False),
    "zeros": Policy(random=False),
    "eye": Policy(min_ndim=2, max_ndim=2, random=False),
    "dirac": Policy({"groups": 1}, min_ndim=3, max_ndim=5, random=False),
    "xavier_uniform": Policy({"gain": 1.0}, needs_fans=True, min_ndim=2),
    "xavier_normal": Policy({"gain": 1.0}, needs_fans=True, min_ndim=2),
    "kaiming_uniform": Policy(_KAIMING, needs_fans=True, min_ndim=2),
    "kaiming_normal": Policy(_KAIMING, needs_fans=True, min_ndim=2),
    "orthogonal": Policy({"gain": 1.0}, min_ndim=2),
    "sparse": Policy({"sparsity": REQUIRED, "std": 0.01}, min_ndim=2, max_ndim=2),
    "default": Policy(),
    "values": Policy({"values": REQUIRED}, random=False),
    "expression": Policy({"value": REQUIRED, "draws": {}}),
    "copy": Policy({"of": REQUIRED, "transpose": False}, random=False),
    "pretrained": Policy(
        {"path": REQUIRED, "key": "{name}", "dim": 0, "transpose": False, "rows": None, "missing": "refuse"},
        random=False,
    ),
    "lsuv": Policy({"std": 1.0, "tolerance": 0.05, "iterations": 10}, min_ndim=2),
    "mup": Policy({"base": REQUIRED, "std": None}),
    "empty": Policy(random=False),
}
_OWN = frozenset({"default", "values", "expression", "copy", "pretrained", "lsuv", "mup", "empty"})


def is_own(policy: str) -> bool:
    """Whether a policy is one that `torch.nn.init` does not have."""
    return policy in _OWN or is_function(policy)


def is_function(policy: str) -> bool:
    """Whether a policy is a function of the user's own, by its dotted path."""
    return is_dotted(policy)


def policy_of(name: str) -> Policy:
    """What a known policy, or a function of the user's own, takes and needs."""
    return Policy() if is_function(name) else POLICIES[name]


def check_policy(name: object, arguments: Mapping[str, Any], address: str) -> list[Problem]:
    """What is wrong with a policy's name and arguments (values computed), at a dotted address."""
    if is_function(str(name)):
        return []  # its arguments are compared with its signature once the caller has allowed it
    if name not in POLICIES:
        return [Problem(f"{address}.policy", f"unknown policy {name!r}", did_you_mean(name, POLICIES, most=20))]
    known = POLICIES[str(name)].arguments
    problems = [
        Problem(
            f"{address}.{key}",
            f"{name} has no argument {key!r}",
            did_you_mean(key, known) or f"{name} takes no arguments",
        )
        for key in arguments
        if key not in known
    ]
    problems += [
        Problem(f"{address}.{key}", f"{name} needs {key!r}", f"give {key}: ...")
        for key, default in known.items()
        if default is REQUIRED and key not in arguments
    ]
    for key, value in arguments.items():
        if key in known:
            problems += _check_argument(str(name), key, value, f"{address}.{key}")
    if name in ("trunc_normal", "uniform") and not problems:
        low, high = ({**known, **arguments}[key] for key in ("a", "b"))
        if low > high or (low == high and name == "trunc_normal"):
            problems.append(Problem(f"{address}.a", f"no value is from {low} to {high}", "a is below b"))
    return problems


def _check_argument(policy: str, key: str, value: Any, address: str) -> list[Problem]:
    if policy in ("values", "pretrained", "mup") or key == "draws":
        return []  # checked where they are read
    choices = {"mode": ("fan_in", "fan_out"), "nonlinearity": NONLINEARITIES}.get(key)
    if choices is not None:
        return [] if value in choices else [Problem(address, f"unknown {key} {value!r}", did_you_mean(value, choices))]
    if key in _WRITTEN:
        kind, example = _WRITTEN[key]
        return [] if isinstance(value, kind) else [Problem(address, f"got {value!r}", f"write {key}: {example}")]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return [Problem(address, f"{key} is a number, got {value!r}", "write 0.02, not text or a bool")]
    if not -sys.float_info.max <= value <= sys.float_info.max:  # an int may be larger; nan is in no order
        shown = value if isinstance(value, float) else "a whole number of more than 308 digits"
        return [Problem(address, f"{key} is {shown}", "give a finite number")]
    if key in _WHOLE and not isinstance(value, int):
        return [Problem(address, f"{policy}: {key} is {value}", f"{key} is a whole number")]
    low, high, words = _LIMITS.get(f"{policy}.{key}", _LIMITS.get(key, (-math.inf, math.inf, "")))
    return [] if low <= value <= high else [Problem(address, f"{policy}: {key} is {value}", f"{key} is {words}")]


_WRITTEN: dict[str, tuple[type, str]] = {
    "of": (str, "wte.weight"),
    "transpose": (bool, "true"),
    "value": (str, "=where(abs(u) >= 5, u, 0), with draws: {u: {policy: uniform, a: -10, b: 10}}"),
}
_WHOLE = frozenset({"groups", "iterations"})
_LIMITS: dict[str, tuple[float, float, str]] = {  # by argument, or by policy and argument
    "std": (0.0, math.inf, "zero or more"),
    "lsuv.std": (1e-6, math.inf, "above zero: a layer's output is scaled to it"),
    "gain": (0.0, math.inf, "zero or more"),
    "sparsity": (0.0, 1.0, "from 0 to 1"),
    "groups": (1, math.inf, "one or more"),
    "tolerance": (1e-6, 1.0, "above zero, to 1"),
    "iterations": (1, 1000, "from 1 to 1000"),
}
