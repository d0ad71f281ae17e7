"""The LightningModule: a built model, its task, its optimizer.

`plan_run` proves a composed config without memory for parameters; `lightning_module` goes on to a module that a
Lightning `Trainer` fits. Frozen parameters never reach the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from builder.build import Proof, materialise, proof_of, prove
from builder.config import unresolved
from builder.errors import Problem, did_you_mean, raise_all
from builder.freeze import check_joint_state, check_something_trains
from builder.groups import Group, parameter_groups, plan_groups
from builder.hold import Holding, hold_frozen
from builder.initialize.lsuv import refuse_without_batch, rescale
from builder.load import Places
from builder.optim import check_optimizer, check_scheduler, make_optimizer, make_scheduler
from builder.resume import check_training
from builder.task import Batch, Task, read_task


class LitModule(pl.LightningModule):
    """Trains a model on a task; logs `train/loss`, `val/...` and `test/...`.

    Attributes:
        model: The built module.
        task: What it learns.
        groups: The groups of its optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        groups: Sequence[Group],
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.groups = tuple(groups)
        self.metrics = nn.ModuleDict(
            {f"{stage}_{name}": metric for stage in ("val", "test") for name, metric in task.make_metrics().items()}
        )
        self._optimizer, self._scheduler = dict(optimizer), dict(scheduler)
        self._holding: Holding | None = None

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The model's own output."""
        return self.model(*inputs)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The loss of one batch."""
        loss = self.task.loss(self.model, batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and metrics of one validation batch."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and metrics of one test batch."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Batch) -> None:
        loss, given = self.task.evaluate(self.model, batch)
        size = len(batch[0])
        self.log(f"{stage}/loss", loss, on_epoch=True, on_step=False, prog_bar=True, batch_size=size, sync_dist=True)
        for name, values in given.items():
            metric = self.metrics[f"{stage}_{name}"]
            metric(*values)
            self.log(f"{stage}/{name}", metric, on_epoch=True, on_step=False, prog_bar=True, batch_size=size)

    def setup(self, stage: str) -> None:
        """Refuses what several processes cannot do.

        Raises:
            BuilderError: A freeze rule has a schedule: data-parallel strategies fix at the start what they reduce.
        """
        scheduled = proof_of(self.model).freeze.scheduled
        if stage == "fit" and scheduled and self.trainer.world_size > 1:
            what = f"{scheduled[0]!r} is frozen for a time, and there are {self.trainer.world_size} processes"
            hint = "freeze for ever, or train in one process: trainer.devices=1"
            raise_all("config", [Problem("freeze", what, hint)])

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Freezes and thaws what the freeze rules say of this epoch and step."""
        if self._holding is not None and self._holding.is_scheduled:
            self._holding.at(self.current_epoch, self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the states of torch's generators, so that dropout goes on as it would have."""
        if self._holding is not None:
            self._holding.restore()  # a step that was broken off has moved rows, and the tensors are not copied yet
        checkpoint["rng_states"] = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the states of torch's generators where training goes on from a checkpoint.

        Raises:
            BuilderError: The checkpoint's optimizer or scheduler is not that of the config.
        """
        states = checkpoint.get("rng_states", {})
        if self.trainer.training:
            raise_all("config", self.check_resume(checkpoint))
        if self.trainer.training and states:
            torch.set_rng_state(states["cpu"].cpu())
            if len(states["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])

    def check_resume(self, checkpoint: Mapping[str, Any]) -> list[Problem]:
        """What keeps the training from going on from a checkpoint: another optimizer or scheduler."""
        optimizer = make_optimizer(self._optimizer, parameter_groups(self.groups, self.model))
        scheduler = make_scheduler(self._scheduler, optimizer)["scheduler"] if self._scheduler else None
        return check_training(checkpoint, self.groups, optimizer, scheduler, self._scheduler)

    def configure_optimizers(self) -> Any:
        """The optimizer over the trainable parameters, and the scheduler if there is one."""
        optimizer = make_optimizer(self._optimizer, parameter_groups(self.groups, self.model))
        if self._holding is not None:
            self._holding.remove()
        self._holding = hold_frozen(self.model, optimizer)
        if not self._scheduler:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": make_scheduler(self._scheduler, optimizer)}


@dataclass(frozen=True)
class RunPlan:
    """A composed config that was proved: everything but memory.

    Attributes:
        proof: The proved model.
        task: What it learns.
        config: The config's plain values.
        groups: The groups of the optimizer; every trainable parameter is in exactly one.
    """

    proof: Proof
    task: Task
    config: Mapping[str, Any]
    groups: tuple[Group, ...]


SECTIONS = ("model", "init", "freeze", "task", "optimizer", "scheduler", "seed", "init_seed", "rng")


def plan_run(
    config: DictConfig | Mapping[str, Any],
    *,
    allow: Sequence[str] = (),
    places: Places | None = None,
    name: str = "",
    scheme_name: str = "init",
) -> RunPlan:
    """Proves the model, the task and the optimizer of a composed config.

    Args:
        config: A config with `model`, `task`, `optimizer`, and optionally `init`, `freeze`, `scheduler`, `seed`,
            `init_seed`, `rng`.
        allow: Prefixes of dotted names, or one, under which kinds and policies may be of the caller's own.
        places: Where the model's keys stand, for messages.
        name: The model's name.
        scheme_name: What the parameter table calls the rules of `init`.

    Raises:
        BuilderError: Any part is refused.
    """
    plain = plain_sections(config)
    raise_all(
        "config",
        [
            Problem(key, "is missing", f"give {key}: ...")
            for key in ("model", "task", "optimizer")
            if not plain.get(key)
        ],
    )
    proof = prove(
        plain["model"],
        init=plain.get("init"),
        freeze=plain.get("freeze"),
        allow=allow,
        places=places,
        name=name,
        scheme_name=scheme_name,
    )
    task = read_task(plain["task"])
    groups, found = _plan_optimizer(plain["optimizer"], plain.get("scheduler") or {}, proof)
    problems = [*found, *_check_settings(plain)]
    problems += check_something_trains(proof.freeze)
    problems += check_joint_state(proof.freeze, str(plain["optimizer"].get("_target_")).rpartition(".")[2])
    raise_all("config", problems)
    return RunPlan(proof, task, plain, tuple(groups))


def _plan_optimizer(
    optimizer: Mapping[str, Any], scheduler: Mapping[str, Any], proof: Proof
) -> tuple[list[Group], list[Problem]]:
    """The groups of the optimizer, and what is wrong with it, with them, or with the scheduler."""
    problems = check_optimizer(optimizer)
    if problems:
        return [], problems
    groups, problems = plan_groups(optimizer, proof)
    return groups, problems or check_scheduler(scheduler, optimizer, [group.settings for group in groups])


def _check_settings(plain: Mapping[str, Any]) -> list[Problem]:
    problems = []
    for key in ("seed", "init_seed"):
        value = plain.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
            problems.append(Problem(key, f"got {value!r}", "a whole number from 0 to 2**32 - 1"))
    if plain.get("rng", "keyed") not in ("keyed", "torch"):
        problems.append(Problem("rng", f"unknown rng {plain['rng']!r}", did_you_mean(plain["rng"], ["keyed", "torch"])))
    return problems


def plain_sections(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The sections that a model and its training need, resolved to plain values."""
    node = config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))
    plain: dict[str, Any] = {}
    for key in SECTIONS:
        try:
            value = node.get(key)
            plain[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as err:
            raise unresolved(err, key) from err
    return {key: value for key, value in plain.items() if value is not None}


def lightning_module(
    config: DictConfig | Mapping[str, Any], *, allow: Sequence[str] = (), batch: Batch | None = None
) -> LitModule:
    """A LightningModule from a composed config.

    Args:
        config: As for `plan_run`.
        allow: As for `plan_run`.
        batch: A batch of the task, for a policy that looks at data (`lsuv`).

    Raises:
        BuilderError: Any part is refused, before memory is allocated.
    """
    plan = plan_run(config, allow=allow)
    if batch is None:
        refuse_without_batch(plan.proof.decisions)
    lit = assemble(plan)
    if batch is not None:
        scale_to_batch(lit, plan.proof, batch)
    return lit


def scale_to_batch(lit: LitModule, proof: Proof, batch: Batch) -> None:
    """Scales what `lsuv` decides, on a batch of the task."""
    rescale(lit.model, proof.decisions, proof.parameters, lambda: lit.task.loss(lit.model, batch))


def assemble(plan: RunPlan) -> LitModule:
    """The LightningModule of a proved run; what `lsuv` decides still awaits its batch."""
    seed = plan.config.get("init_seed", plan.config.get("seed", 0))
    model = materialise(plan.proof, seed=seed, rng=plan.config.get("rng", "keyed"))
    return LitModule(model, plan.task, plan.config["optimizer"], plan.config.get("scheduler") or {}, plan.groups)
