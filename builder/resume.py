"""Whether a run may go on from a checkpoint, settled before anything is written.

What a checkpoint holds of model, optimizer and scheduler replaces what the config says of them. So a config that says
something else is refused: it would have no effect, or, with another optimizer, end in the midst of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from builder.errors import BuilderError, Problem
from builder.groups import Group, check_saved_groups
from builder.hold import SWITCHED

_KEYS = ("pytorch-lightning_version", "loops", "optimizer_states", "lr_schedulers")  # what Lightning goes on from
_APART = frozenset({"params", "param_names", SWITCHED, "foreach", "fused", "capturable", "differentiable"})
_OF_SCHEDULERS = frozenset({"lr", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"})
_SAME = "use the model and args that it was made with"
_PLACE = "runs keep theirs in RUN/checkpoints"


def read_checkpoint(path: str) -> dict[str, Any]:
    """What a checkpoint holds, its tensors on meta.

    Raises:
        BuilderError: It is no checkpoint of a run.
    """
    try:
        saved = torch.load(path, map_location="meta", weights_only=True)
        shapes = {name: tuple(value.shape) for name, value in saved["state_dict"].items()}
    except Exception as err:  # the unpickler raises whatever the bytes of some other file lead it to
        what = f"{path!r} is not a checkpoint: {type(err).__name__} when it was read"
        raise BuilderError("config", [Problem("ckpt_path", what, _PLACE)]) from err
    missing = [key for key in _KEYS if key not in saved]
    if missing:
        what = f"{path!r} holds weights and no state of a training: it lacks {', '.join(missing)}"
        hint = f"{_PLACE}; an init rule with policy: pretrained takes weights alone"
        raise BuilderError("config", [Problem("ckpt_path", what, hint)])
    return {**saved, "state_dict": shapes}


def check_tensors(saved: Mapping[str, tuple[int, ...]], needed: Mapping[str, tuple[int, ...]]) -> list[Problem]:
    """Refuses a checkpoint whose tensors do not fit.

    Args:
        saved: The shapes of its tensors.
        needed: Those of the module.
    """
    wrong = [
        f"{name.removeprefix('model.')} is {saved.get(name, 'missing')}, the model's {needed.get(name, 'missing')}"
        for name in {**needed, **saved}
        if saved.get(name) != needed.get(name)
    ]
    if not wrong:
        return []
    what = "the checkpoint is of another model: " + "; ".join(wrong[:4]) + ("; ..." if len(wrong) > 4 else "")
    return [Problem("ckpt_path", what, _SAME)]


def check_training(
    saved: Mapping[str, Any],
    groups: Sequence[Group],
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    arguments: Mapping[str, Any],
) -> list[Problem]:
    """Refuses a checkpoint whose optimizer or scheduler is not the config's.

    Args:
        saved: The checkpoint.
        groups: The groups of the config's optimizer.
        optimizer: The config's optimizer, which has not taken a step.
        scheduler: Its scheduler, or None.
        arguments: What the config says of the scheduler.
    """
    states: Sequence[Mapping[str, Any]] = saved.get("optimizer_states", [])
    before = states[0].get("param_groups", []) if states else []
    problems = check_saved_groups(before, groups)
    if not problems:
        problems = _check_settings(before, optimizer, scheduled=scheduler is not None)
    return problems + _check_scheduler(saved.get("lr_schedulers", []), scheduler, arguments)


def _check_settings(
    before: Sequence[Mapping[str, Any]], optimizer: torch.optim.Optimizer, *, scheduled: bool
) -> list[Problem]:
    """Compares the settings of each group, but for those that a scheduler has moved since."""
    kind = type(optimizer).__name__
    for number, (then, now) in enumerate(zip(before, optimizer.param_groups, strict=True)):
        moved = _APART | _OF_SCHEDULERS | ({"betas", "momentum"} if "max_momentum" in now else set())
        if then.keys() - moved != now.keys() - moved:
            other = ", ".join(sorted((then.keys() ^ now.keys()) - moved))
            what = f"its optimizer was no {kind}: one has {other}, and the other has not"
            return [Problem("ckpt_path", what, "use the optimizer that it was made with")]
        rates = [group.get("initial_lr", None if scheduled else group["lr"]) for group in (then, now)]
        pairs = {"lr": rates, **{key: [then[key], now[key]] for key in now.keys() - moved}}
        for key, (value, given) in sorted(pairs.items()):
            if None not in (value, given) and _plain(value) != _plain(given):
                group = f" in group {number}" if len(before) > 1 else ""
                what = f"{key} is {given} in the config and {value} in the checkpoint{group}, which replaces it"
                return [Problem(f"optimizer.{key}", what, f"give {value}: a run goes on with what it had")]
    return []


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_scheduler(
    before: Sequence[Mapping[str, Any]], scheduler: Any, arguments: Mapping[str, Any]
) -> list[Problem]:
    if bool(before) != (scheduler is not None):
        what = (
            f"the checkpoint's run had {'a' if before else 'no'} scheduler, and this one has {'no' if before else 'a'}"
        )
        return [
            Problem("scheduler", f"{what}: it would go on as if from the start", "use the one that it was made with")
        ]
    if scheduler is None:
        return []
    then, now = before[0], scheduler.state_dict()
    read = [key for key in arguments if key in now]
    if any(key not in then for key in read):
        what = f"the checkpoint's scheduler was no {type(scheduler).__name__}"
        return [Problem("scheduler", what, "use the one that it was made with")]
    return [
        Problem(
            f"scheduler.{key}",
            f"is {now[key]} in the config and {then[key]} in the checkpoint, which replaces it",
            f"give scheduler.{key}={then[key]}: a run goes on with what it had",
        )
        for key in read
        if _plain(then[key]) != _plain(now[key])
    ]
