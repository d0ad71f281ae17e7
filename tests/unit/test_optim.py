"""Optimizers and schedulers are classes of torch.optim with arguments that run."""

import pytest
import torch
from torch import nn

from builder.optim import OPTIMIZERS, SCHEDULERS, check_optimizer, check_scheduler, make_optimizer, make_scheduler

SGD = {"_target_": "torch.optim.SGD", "lr": 0.1}
STEP = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2}


def test_classes_of_torch_are_known():
    assert {"SGD", "Adam", "AdamW", "LBFGS"} <= set(OPTIMIZERS)
    assert {"StepLR", "CosineAnnealingLR", "OneCycleLR", "ReduceLROnPlateau"} <= set(SCHEDULERS)
    assert "Optimizer" not in OPTIMIZERS and "LRScheduler" not in SCHEDULERS


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"SparseAdam"}))
def test_optimizer_with_its_defaults_is_accepted(name):
    assert check_optimizer({"_target_": f"torch.optim.{name}", "lr": 0.01}) == []


@pytest.mark.parametrize(
    ("change", "address", "what"),
    [
        pytest.param({"_target_": "torch.optim.Sgd"}, "optimizer._target_", "not a class of torch.optim", id="unknown"),
        pytest.param({"_target_": "os.SGD"}, "optimizer._target_", "'os.SGD' is not a class", id="another package"),
        pytest.param({"momentun": 0.9}, "optimizer.momentun", "has no argument", id="misspelt"),
        pytest.param({"params": []}, "optimizer.params", "has no argument", id="parameters are ours"),
        pytest.param({"lr": True}, "optimizer.lr", "got True", id="bool"),
        pytest.param({"lr": float("nan")}, "optimizer.lr", "got nan", id="nan"),
        pytest.param({"lr": -1.0}, "optimizer.lr", "lr is -1.0", id="negative"),
        pytest.param({"momentum": "x"}, "optimizer.momentum", "is a number", id="text"),
        pytest.param({"nesterov": True}, "optimizer", "SGD does not run with", id="refused by torch"),
    ],
)
def test_optimizer_is_refused(change, address, what):
    (problem,) = check_optimizer({**SGD, **change})
    assert problem.address == address
    assert what in problem.what


@pytest.mark.parametrize(
    ("config", "address", "what"),
    [
        pytest.param({**STEP, "gama": 1}, "scheduler.gama", "has no argument 'gama'", id="misspelt"),
        pytest.param({**STEP, "interval": "hour"}, "scheduler.interval", "unknown interval", id="interval"),
        pytest.param({**STEP, "step_size": "x"}, "scheduler", "StepLR does not run with", id="refused by torch"),
        pytest.param({"_target_": "torch.optim.lr_scheduler.X"}, "scheduler._target_", "not a class", id="unknown"),
        pytest.param(
            {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau"}, "scheduler.monitor", "is missing", id="plateau"
        ),
    ],
)
def test_scheduler_is_refused(config, address, what):
    (problem,) = check_scheduler(config, SGD)
    assert problem.address == address
    assert what in problem.what


def test_schedulers_that_run_are_accepted():
    plateau = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "monitor": "val/loss", "patience": 3}
    assert [check_scheduler(config, SGD) for config in ({}, STEP, plateau)] == [[], [], []]


def test_made_optimizer_and_scheduler_have_what_the_config_says():
    optimizer = make_optimizer({**SGD, "momentum": 0.5}, [nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["momentum"] == 0.5
    made = make_scheduler({**STEP, "interval": "step", "frequency": 3}, optimizer)
    assert (made["interval"], made["frequency"], made["scheduler"].step_size) == ("step", 3, 2)


def test_rehearsal_draws_no_random_number():
    state = torch.get_rng_state()
    assert check_scheduler(STEP, SGD) == check_optimizer(SGD) == []
    assert torch.equal(torch.get_rng_state(), state)
