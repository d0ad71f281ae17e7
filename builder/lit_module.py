"""The LightningModule: a built model, its task, its optimizer.

`plan_run` proves a composed config without memory for parameters; `lightning_module` goes on to a module that a
Lightning `Trainer` fits. Frozen parameters never reach the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from builder.build import Proof, materialise, prove
from builder.config import unresolved
from builder.errors import Problem, did_you_mean, raise_all
from builder.load import Places
from builder.optim import check_optimizer, check_scheduler, make_optimizer, make_scheduler
from builder.table import rows, totals
from builder.task import Batch, Task, read_task


class LitModule(pl.LightningModule):
    """Trains a model on a task; logs `train/loss`, `val/...` and `test/...`.

    Attributes:
        model: The built module.
        task: What it learns.
    """

    def __init__(
        self, model: nn.Module, task: Task, optimizer: Mapping[str, Any], scheduler: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.metrics = nn.ModuleDict(
            {f"{stage}_{name}": metric for stage in ("val", "test") for name, metric in task.make_metrics().items()}
        )
        self._optimizer, self._scheduler = dict(optimizer), dict(scheduler)

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
        self.log(f"{stage}/loss", loss, on_epoch=True, on_step=False, prog_bar=True, batch_size=size)
        for name, values in given.items():
            metric = self.metrics[f"{stage}_{name}"]
            metric(*values)
            self.log(f"{stage}/{name}", metric, on_epoch=True, on_step=False, prog_bar=True, batch_size=size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the states of torch's generators, so that dropout goes on as it would have."""
        checkpoint["rng_states"] = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the states of torch's generators where training goes on from a checkpoint."""
        states = checkpoint.get("rng_states", {})
        if self.trainer.training and states:
            torch.set_rng_state(states["cpu"].cpu())
            if len(states["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])

    def configure_optimizers(self) -> Any:
        """The optimizer over the trainable parameters, and the scheduler if there is one."""
        optimizer = make_optimizer(self._optimizer, [p for p in self.model.parameters() if p.requires_grad])
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
    """

    proof: Proof
    task: Task
    config: Mapping[str, Any]


SECTIONS = ("model", "init", "freeze", "task", "optimizer", "scheduler", "seed", "init_seed", "rng")


def plan_run(
    config: DictConfig | Mapping[str, Any], *, places: Places | None = None, name: str = "", scheme_name: str = "init"
) -> RunPlan:
    """Proves the model, the task and the optimizer of a composed config.

    Args:
        config: A config with `model`, `task`, `optimizer`, and optionally `init`, `freeze`, `scheduler`, `seed`,
            `init_seed`, `rng`.
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
        places=places,
        name=name,
        scheme_name=scheme_name,
    )
    task = read_task(plain["task"])
    problems = [
        *(check_optimizer(plain["optimizer"]) or check_scheduler(plain.get("scheduler") or {}, plain["optimizer"])),
        *_check_settings(plain),
    ]
    counts = totals(rows(proof))
    if counts["trainable"] == 0:
        by = ", ".join(sorted(set(proof.frozen.values()))) or "nothing"
        problems.append(
            Problem(
                "freeze",
                f"everything is frozen: all {counts['parameters']:,} parameters (by {by})",
                "leave something to train",
            )
        )
    raise_all("config", problems)
    return RunPlan(proof, task, plain)


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


def lightning_module(config: DictConfig | Mapping[str, Any] | RunPlan) -> LitModule:
    """A LightningModule from a composed config (or from one that `plan_run` proved).

    Raises:
        BuilderError: Any part is refused, before memory is allocated.
    """
    plan = config if isinstance(config, RunPlan) else plan_run(config)
    seed = plan.config.get("init_seed", plan.config.get("seed", 0))
    model = materialise(plan.proof, seed=seed, rng=plan.config.get("rng", "keyed"))
    return LitModule(model, plan.task, plan.config["optimizer"], plan.config.get("scheduler") or {})
