"""What watches over a run: it stops at the first number that is none, and says at the end what the statistics show.

The loss is looked at before the backward pass and the gradients before the step that would use them, so the weights
that a stopped run leaves are those of its last good step. On the CPU the loss of every step is read, which costs
nothing there; on other devices, and where there are several processes, only every so many steps, because reading waits
for the device and for the others. Where statistics are recorded, what is not finite in the weights and gradients of
each logged step has been counted, and to look at the counts waits for nothing; else the guard looks at the weights.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import Optimizer

from builder.errors import BuilderError, Problem, raise_all
from builder.initialize.shards import is_shard
from builder.module import as_written, is_continuous, uncompiled
from builder.stats.callback import ParameterStatistics
from builder.stats.settings import faults
from builder.stats.store import read_outputs, read_stats
from builder.stats.verdicts import listed, verdicts
from builder.whole import write_text

VERDICTS = "verdicts.json"


class NonFiniteGuard(pl.Callback):
    """Stops the run, or warns once, where the loss, a gradient or a trainable weight is NaN or infinite.

    Stands behind the callback that records statistics, whose newest counts it reads.

    Args:
        action: stop, warn or ignore.
        every_n_steps: How often gradients are looked at, and weights where no statistics are; the loss too, where
            looking waits for a device.

    Raises:
        BuilderError: A bad argument; during the fit, with parameter and step, where the action is to stop.
    """

    def __init__(self, action: str = "stop", every_n_steps: int = 50) -> None:
        raise_all("statistics", faults(on_nonfinite=action, every_n_steps=every_n_steps))
        self._action = action
        self._every = every_n_steps
        self._finite: torch.Tensor | None = None
        self._seen = 0

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Looks at the loss, while the weights are still those that gave it."""
        if self._action == "ignore":
            return
        finite = torch.isfinite(loss.detach()).all()
        self._finite = finite if self._finite is None else self._finite & finite
        if self._looks_at_every_loss(trainer, loss) or self._is_due(trainer):
            all_finite = _everywhere(trainer, bool(self._finite))
            self._finite = None
            if not all_finite:
                cause = (
                    f"the weights are finite, the largest {_largest_weight(pl_module)}: the batch made it, or they did"
                )
                self._act(trainer, "train/loss", f"is {float(loss.detach()):g}", nonfinite_weights(pl_module), cause)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Looks at the gradients, now and then."""
        if self._action != "ignore" and self._is_due(trainer) and not _scales(trainer):
            found = nonfinite_gradients(pl_module)
            if not _everywhere(trainer, not found):
                cause = "in another process"
                self._act(trainer, next(iter(found), "gradients"), "has a gradient that is not finite", found, cause)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at what statistics have counted in the newest logged step, else at the weights, now and then.

        Callbacks that save checkpoints come later. A frozen weight may be infinite on purpose, as in a mask.
        """
        if self._action == "ignore":
            return
        counted = _newest_counts(trainer)
        if counted is not None:
            step, weights, gradients = counted
            model = cast(nn.Module, pl_module.model)
            frozen = {as_written(name) for name, p in uncompiled(model).named_parameters() if not p.requires_grad}
            weights = {name: count for name, count in weights.items() if name not in frozen}
            if weights or (gradients and not _scales(trainer)):
                self._act_on_counts(trainer, step, weights, gradients)
            return
        last, self._seen = self._seen, trainer.global_step
        if self._seen // self._every > last // self._every:  # a batch may make several steps, or none
            weights = nonfinite_learned(pl_module)
            if not _everywhere(trainer, not weights):
                self._act_on_counts(trainer, self._seen, weights, {})

    def _act_on_counts(
        self, trainer: pl.Trainer, step: int, weights: Mapping[str, int], gradients: Mapping[str, int]
    ) -> None:
        """Acts on what a step has left; all processes have come to it."""
        if weights or not gradients:
            address, what, counts = next(iter(weights), "weights"), "is not finite after its update", weights
        else:
            address, what, counts = next(iter(gradients)), "had a gradient that is not finite", gradients
        self._act(trainer, address, what, counts, "in another process", step)

    def _looks_at_every_loss(self, trainer: pl.Trainer, loss: torch.Tensor) -> bool:
        return loss.device.type == "cpu" and trainer.world_size == 1

    def _is_due(self, trainer: pl.Trainer) -> bool:
        return (trainer.global_step + 1) % self._every == 0

    def _act(
        self,
        trainer: pl.Trainer,
        address: str,
        what: str,
        counts: Mapping[str, int],
        otherwise: str,
        step: int | None = None,
    ) -> None:
        step = trainer.global_step + 1 if step is None else step
        named = [f"{name} ({count} values)" for name, count in counts.items()]
        cause = f"not finite: {listed(named)}" if named else otherwise
        problem = Problem(address, f"{what} at step {step}; {cause}", _remedy(trainer))
        if self._action == "stop":
            raise BuilderError("training", [problem])
        print(f"training goes on:\n{problem}", file=sys.stderr)
        self._action = "ignore"


class VerdictsFile(pl.Callback):
    """Judges the statistics when a fit ends, however it ends: `verdicts.json`, and a line for each verdict.

    Stands behind the callback that records, whose last records it reads. Where the statistics cannot be judged it says
    so, and the run ends as it would without it. A fit that did not begin has nothing to judge: what the directory holds
    is of an earlier one.

    Args:
        directory: The run directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._began = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The statistics are now those of this fit, and earlier verdicts are of none."""
        self._began = True
        if trainer.is_global_zero:
            (self._directory / VERDICTS).unlink(missing_ok=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After the last step."""
        self._write(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """After a step that failed."""
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        began, self._began = self._began, False
        if not began or not trainer.is_global_zero:
            return
        try:
            found = self._judge()
        except Exception as err:  # whatever it is, the weights have been trained
            problem = err.problems[0] if isinstance(err, BuilderError) else None
            said = f"{problem.address}: {problem.what}" if problem else f"{type(err).__name__}: {err}"
            print(f"the statistics could not be judged: {said.splitlines()[0]}", file=sys.stderr)
            return
        for verdict in found:
            print(f"{verdict['severity']}: {verdict['text']}", flush=True)

    def _judge(self) -> list[dict[str, Any]]:
        """Writes the verdicts, where something was logged."""
        found = judged(self._directory)
        if found is None:
            return []
        write_text(self._directory / VERDICTS, json.dumps(found, indent=2) + "\n")
        return found


def judged(run_dir: Path) -> list[dict[str, Any]] | None:
    """The verdicts on a run directory, as data whose numbers JSON can hold; None where no statistics were logged."""
    parameters, outputs = read_stats(run_dir), read_outputs(run_dir)
    if parameters.is_empty():
        return None
    table = run_dir / "parameters.json"
    rows = json.loads(table.read_text(encoding="utf-8"))["parameters"] if table.is_file() else []
    found: list[dict[str, Any]] = in_json([verdict.as_data() for verdict in verdicts(parameters, outputs, rows)])
    return found


def _largest_weight(module: nn.Module) -> str:
    largest = {name: float(p.detach().abs().max()) for name, p in module.named_parameters() if p.numel()}
    name = max(largest, key=lambda name: largest[name], default="")
    return f"{largest[name]:.3g} in {_told(name)}" if name else "none"


def _told(name: str) -> str:
    """A name within a Lightning module as one of its model."""
    return as_written(name).removeprefix("model.")


def nonfinite_weights(module: nn.Module) -> dict[str, int]:
    """How many values of each parameter and floating buffer are NaN or infinite; those without any are left out."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return _counts({name: tensor.detach() for name, tensor in tensors.items()})


def nonfinite_learned(module: nn.Module) -> dict[str, int]:
    """The same of what training changes."""
    return _counts(_learned(module))


def _learned(module: nn.Module) -> dict[str, torch.Tensor]:
    """Trainable parameters and running statistics; anything else may be infinite on purpose, as a mask is."""
    found = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    for path, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            found |= part.named_buffers(prefix=path)
    return found


def nonfinite_gradients(module: nn.Module) -> dict[str, int]:
    """How many values of each gradient are NaN or infinite; those without any are left out."""
    return _counts({name: p.grad for name, p in module.named_parameters() if p.grad is not None})


def _counts(tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    """The sum of a tensor tells whether a value is not finite, at a fifth of the time of a count."""
    values = {name: (t.coalesce().values() if t.is_sparse else t) for name, t in tensors.items()}
    floats = {name: t for name, t in values.items() if is_continuous(t.dtype)}
    finite = _are_finite([t.sum() for t in floats.values()])
    suspects = {name: t for (name, t), fine in zip(floats.items(), finite, strict=True) if not fine}
    found = {name: int((~torch.isfinite(t)).sum()) for name, t in suspects.items()}
    return {_told(name): count for name, count in found.items() if count}


def _are_finite(numbers: Sequence[torch.Tensor]) -> list[bool]:
    """Whether each single number is finite; the device is waited for once."""
    each: list[Any] = list(numbers)
    found = [torch.isfinite(number.full_tensor() if is_shard(number) else number) for number in each]
    found = [finite.to(found[0].device) for finite in found]
    return torch.stack(found).tolist() if found else []


def _newest_counts(trainer: pl.Trainer) -> tuple[int, Mapping[str, int], Mapping[str, int]] | None:
    """The newest logged step, and its weights and gradients that are not finite; None where nothing counts them."""
    for callback in cast(list[pl.Callback], trainer.callbacks):  # type: ignore[attr-defined]
        if isinstance(callback, ParameterStatistics) and callback.nonfinite is not None:
            return callback.nonfinite
    return None


def _scales(trainer: pl.Trainer) -> bool:
    """Whether a loss scaler is at work: it skips a step whose gradients overflow, and recovers."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and scaler.is_enabled()


def _everywhere(trainer: pl.Trainer, holds: bool) -> bool:
    return trainer.strategy.reduce_boolean_decision(holds) if trainer.world_size > 1 else holds


def _remedy(trainer: pl.Trainer) -> str:
    kept = [str(getattr(callback, "best_model_path", "")) for callback in trainer.checkpoint_callbacks]
    learned = _learned(trainer.lightning_module)
    kept = [path for path in kept if path and _is_finite(path, learned)]
    back = f"the last good checkpoint is {kept[-1]}\n" if kept else ""
    return f"{back}try a smaller optimizer.lr, trainer.gradient_clip_val=1.0, or another init; stats.on_nonfinite=warn"


def _is_finite(path: str, names: Collection[str]) -> bool:
    """Whether a checkpoint can be read and such of its tensors are finite; a mask may be infinite on purpose."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception:  # a folder of shards, or what another process is writing
        return False
    return not _counts({name: tensor for name, tensor in state.items() if name in names})


def in_json(value: Any) -> Any:
    """Plain data in which numbers that JSON does not know are texts."""
    match value:
        case dict():
            return {key: in_json(each) for key, each in value.items()}
        case list() | tuple():
            return [in_json(each) for each in value]
        case float() if not math.isfinite(value):
            return str(value)
    return value
