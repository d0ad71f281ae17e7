"""Optimizer and scheduler from config: classes of `torch.optim`, arguments checked before anything is built.

Arguments are compared with the signature, and the whole is rehearsed on a parameter of one value, so that what torch
notices only at the first step is refused before the run has written anything.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from builder.errors import Problem, did_you_mean

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name: value
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
}
SCHEDULERS: dict[str, type[lr_scheduler.LRScheduler]] = {
    name: value
    for name, value in vars(lr_scheduler).items()
    if inspect.isclass(value) and issubclass(value, lr_scheduler.LRScheduler) and value is not lr_scheduler.LRScheduler
}
GROUPS = "groups"  # the key under which an optimizer's config has rules for its groups
_NUMBERS = {"lr", "lr_scale", "weight_decay", "momentum", "eps", "gamma", "max_lr", "base_lr", "min_lr", "eta_min"}
_LIGHTNING_KEYS = {"interval", "frequency", "monitor"}  # what Lightning, not the scheduler, is told


def check_optimizer(config: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with an optimizer's config, its `groups` apart: `{_target_: torch.optim.AdamW, lr: 0.001}`."""
    problems = _check("optimizer", config, OPTIMIZERS, "torch.optim", {"params"}, {GROUPS})
    return problems or _rehearsed("optimizer", config, {}, ())


def check_scheduler(
    config: Mapping[str, Any], optimizer: Mapping[str, Any], groups: Sequence[Mapping[str, Any]] = ()
) -> list[Problem]:
    """What is wrong with a scheduler's config, given a checked optimizer's; an empty one is none.

    Args:
        config: The scheduler's.
        optimizer: The optimizer's.
        groups: The settings of each of the optimizer's groups.
    """
    if not config:
        return []
    problems = _check("scheduler", config, SCHEDULERS, "torch.optim.lr_scheduler", {"optimizer"}, _LIGHTNING_KEYS)
    if config.get("interval", "epoch") not in ("epoch", "step"):
        what = f"unknown interval {config['interval']!r}"
        problems.append(Problem("scheduler.interval", what, did_you_mean(config["interval"], ["epoch", "step"])))
    if config.get("eta_min") and len({settings.get("lr") for settings in groups}) > 1:
        what = f"eta_min is {config['eta_min']}, one rate for all groups, and the groups have rates of their own"
        hint = "a group below it would rise to it, and none would keep its proportion; give eta_min: 0"
        problems.append(Problem("scheduler.eta_min", what, hint))
    if _is_plateau(config) and not config.get("monitor"):
        problems.append(Problem("scheduler.monitor", "is missing", "name what it watches: scheduler.monitor=val/loss"))
    return problems or _rehearsed("scheduler", optimizer, config, groups)


def _is_plateau(config: Mapping[str, Any]) -> bool:
    return str(config.get("_target_", "")).endswith(".ReduceLROnPlateau")


def _rehearsed(
    section: str,
    optimizer: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
) -> list[Problem]:
    """What a step on parameters of one value says: classes of torch check some arguments only when they run."""
    config = scheduler or optimizer
    name = str(config["_target_"]).rpartition(".")[2]
    try:
        parameters = [{"params": [nn.Parameter(torch.zeros(1, 1))], **settings} for settings in groups or [{}]]
        made = make_optimizer(optimizer, parameters)
        moves: Any = make_scheduler(scheduler, made)["scheduler"] if scheduler else None
        made.step(lambda: 0.0)
        if moves is not None:
            moves.step(*([0.0] if _is_plateau(scheduler) else []))
    except Exception as err:  # torch raises anything from an IndexError to an AssertionError for a bad argument
        given = ", ".join(f"{key}: {value!r}" for key, value in config.items() if key not in ("_target_", GROUPS))
        said = f"{type(err).__name__}: {str(err).splitlines()[0] if str(err) else 'no message'}"
        return [Problem(section, f"{name} does not run with {given or 'no arguments'}: {said}", "mend its arguments")]
    return []


def _check(
    section: str,
    config: Mapping[str, Any],
    known: Mapping[str, type],
    package: str,
    given_by_us: set[str],
    extra: set[str],
) -> list[Problem]:
    target = str(config.get("_target_", ""))
    module, _, name = target.rpartition(".")
    if name not in known or module != package:
        return [
            Problem(
                f"{section}._target_", f"{target!r} is not a class of {package}", did_you_mean(name, known, most=20)
            )
        ]
    parameters = inspect.signature(known[name]).parameters
    allowed = (set(parameters) - given_by_us) | extra
    problems = []
    for key, value in config.items():
        if key == "_target_":
            continue
        address = f"{section}.{key}"
        if key not in allowed:
            problems.append(Problem(address, f"{name} has no argument {key!r}", did_you_mean(key, allowed, most=20)))
        else:
            problems += check_value(address, key, value, parameters[key].default if key in parameters else None)
    return problems


def check_value(address: str, key: str, value: Any, default: Any) -> list[Problem]:
    """What is wrong with the value of an argument, seen by itself: a number out of range, text for a switch.

    Args:
        address: Where it stands.
        key: The argument's name.
        value: What it is given.
        default: What it is without; true or false makes it a switch.
    """
    if isinstance(default, bool) and not isinstance(value, bool):
        return [Problem(address, f"{key} is true or false, got {value!r}", "write true or false")]
    return check_number(address, key, value)


def check_number(address: str, key: str, value: Any) -> list[Problem]:
    """What is wrong with the value of an argument, if it is one of those that are a number, zero or more."""
    if key not in _NUMBERS:
        return []
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return [Problem(address, f"{key} is a number, got {value!r}", "write 0.001 or 1e-3")]
    if value < 0:
        return [Problem(address, f"{key} is {value}", "zero or more")]
    return []


def make_optimizer(
    config: Mapping[str, Any], parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]]
) -> torch.optim.Optimizer:
    """The optimizer of a checked config over some parameters, or over groups of them as torch takes these."""
    name = str(config["_target_"]).rpartition(".")[2]
    arguments = {key: value for key, value in config.items() if key not in ("_target_", GROUPS)}
    make: Any = OPTIMIZERS[name]
    optimizer: torch.optim.Optimizer = make(parameters, **arguments)
    return optimizer


def make_scheduler(config: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The scheduler of a checked config, with what Lightning is told of it.

    A group keeps its proportion to the optimizer's learning rate: most schedulers multiply what each group has; of the
    rates that OneCycleLR, CyclicLR and ReduceLROnPlateau (`min_lr`) name themselves, each group gets its share.
    """
    name = str(config["_target_"]).rpartition(".")[2]
    arguments = {key: value for key, value in config.items() if key not in {"_target_", *_LIGHTNING_KEYS}}
    if name in ("OneCycleLR", "CyclicLR", "ReduceLROnPlateau"):
        for key in {"max_lr", "base_lr", "min_lr"} & {key for key in arguments if arguments[key]}:
            arguments[key] = [arguments[key] * share for share in _shares(optimizer)]
    make: Any = SCHEDULERS[name]
    told = {key: value for key, value in config.items() if key in _LIGHTNING_KEYS}
    return {"scheduler": make(optimizer, **arguments), **told}


def _shares(optimizer: torch.optim.Optimizer) -> list[float]:
    """What the learning rate of each group is of the optimizer's own."""
    own, rates = optimizer.defaults["lr"], [group["lr"] for group in optimizer.param_groups]
    if own == 0 and any(rates):
        raise ValueError("optimizer.lr is 0, so that the proportions of the groups to it are not known")
    return [1.0 if rate == own else rate / own for rate in rates]
