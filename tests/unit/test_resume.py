"""A run goes on only from a checkpoint of the same model, optimizer and scheduler; what else is refused, and how."""

# ruff: noqa: E501 (a row of the table reads better on one line)

import copy

import pytest
import torch

import builder
from builder.resume import check_tensors, read_checkpoint

CONFIG = {
    "model": {
        "inputs": {"x": {"shape": ["batch", 4]}},
        "layers": {"fc": {"kind": "Linear", "in_features": 4, "out_features": 3}},
    },
    "task": {"batch": ["x", "y"], "loss": "cross_entropy(model(x), y)"},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.01, "weight_decay": 0.1},
}
COSINE = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": 10}
STEP = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 3}
CYCLE = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.01, "total_steps": 9}
PLATEAU = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "monitor": "val/loss", "patience": 0}
GROUPS = {"bias": {"max_ndim": 1, "weight_decay": 0}}


def lit_of(scheduler=None, **optimizer):
    config = copy.deepcopy(CONFIG)
    config["optimizer"] |= optimizer
    return builder.lightning_module({**config, "scheduler": scheduler or {}})


def saved(scheduler=None, steps=4, **optimizer):
    """What Lightning saves after some steps."""
    made = lit_of(scheduler, **optimizer).configure_optimizers()
    made = made if isinstance(made, dict) else {"optimizer": made}
    moves = [made["lr_scheduler"]["scheduler"]] if "lr_scheduler" in made else []
    for _ in range(steps):
        made["optimizer"].step(lambda: 0.0)
        for one in moves:
            one.step(*([1.0] if scheduler is PLATEAU else []))
    return {
        "optimizer_states": [made["optimizer"].state_dict()],
        "lr_schedulers": [one.state_dict() for one in moves],
    }


@pytest.mark.parametrize(
    ("scheduler", "optimizer"),
    [
        pytest.param(None, {}, id="nothing else"),
        pytest.param(None, {"groups": GROUPS}, id="groups"),
        pytest.param(None, {"_target_": "torch.optim.SGD", "momentum": 0.9}, id="SGD"),
        pytest.param(COSINE, {}, id="a cosine"),
        pytest.param(STEP, {"groups": GROUPS}, id="a step and groups"),
        pytest.param(CYCLE, {}, id="a cycle, which moves betas as well"),
        pytest.param({**CYCLE, "cycle_momentum": False}, {}, id="a cycle of the rate alone"),
        pytest.param(PLATEAU, {}, id="a plateau, which has lowered the rate"),
    ],
)
def test_training_goes_on_from_what_it_saved(scheduler, optimizer):
    assert lit_of(scheduler, **optimizer).check_resume(saved(scheduler, **optimizer)) == []


def test_fast_kernels_may_be_chosen_anew():
    assert lit_of(foreach=True).check_resume(saved(foreach=False)) == []


@pytest.mark.parametrize(
    ("before", "now", "address", "what", "hint"),
    [
        pytest.param({}, {"lr": 0.5}, "optimizer.lr", "0.5 in the config and 0.01 in the checkpoint", "give 0.01", id="a rate"),
        pytest.param(
            {"scheduler": COSINE}, {"scheduler": COSINE, "lr": 0.5}, "optimizer.lr", "lr is 0.5", "give 0.01",
            id="a rate that a scheduler has moved",
        ),
        pytest.param({}, {"weight_decay": 0.3}, "optimizer.weight_decay", "is 0.3 in the config", "give 0.1", id="decay"),
        pytest.param({}, {"betas": [0.5, 0.9]}, "optimizer.betas", "(0.5, 0.9)", "give (0.9, 0.999)", id="betas"),
        pytest.param(
            {}, {"_target_": "torch.optim.SGD"}, "ckpt_path", "its optimizer was no SGD: one has ", "use the optimizer",
            id="another optimizer",
        ),
        pytest.param(
            {}, {"_target_": "torch.optim.Adam"}, "optimizer.decoupled_weight_decay", "is False in the config", "give True",
            id="one with other decay",
        ),
        pytest.param(
            {"groups": GROUPS}, {"groups": {"bias": {"max_ndim": 1, "weight_decay": 0.2}}}, "optimizer.weight_decay",
            "is 0.2 in the config and 0 in the checkpoint in group 1", "give 0", id="a setting of a group",
        ),
        pytest.param({}, {"groups": GROUPS}, "ckpt_path", "1 groups of other parameters", "optimizer.groups", id="groups"),
        pytest.param({"scheduler": STEP}, {}, "scheduler", "run had a scheduler, and this one has no", "use the one", id="one less"),
        pytest.param({}, {"scheduler": STEP}, "scheduler", "run had no scheduler, and this one has a", "use the one", id="one more"),
        pytest.param(
            {"scheduler": STEP}, {"scheduler": COSINE}, "scheduler", "was no CosineAnnealingLR", "use the one",
            id="another scheduler",
        ),
        pytest.param(
            {"scheduler": COSINE}, {"scheduler": {**COSINE, "T_max": 60}}, "scheduler.T_max",
            "is 60 in the config and 10 in the checkpoint", "give scheduler.T_max=10", id="another length",
        ),
    ],
)  # fmt: skip
def test_config_that_a_checkpoint_would_override_in_silence_is_refused(before, now, address, what, hint):
    problem = lit_of(**now).check_resume(saved(**before))[0]
    assert (problem.address, what in problem.what, hint in problem.hint) == (address, True, True), problem


def test_file_without_the_state_of_a_training_is_refused(tmp_path, refusal):
    torch.save({"state_dict": {"fc.weight": torch.zeros(2)}}, tmp_path / "weights.ckpt")
    problem = refusal(read_checkpoint, str(tmp_path / "weights.ckpt"))
    assert problem.address == "ckpt_path"
    assert "holds weights and no state of a training: it lacks pytorch-lightning_version" in problem.what
    assert "policy: pretrained" in problem.hint


def test_tensors_of_another_model_are_named():
    (problem,) = check_tensors({"model.a": (2,), "model.b": (3,)}, {"model.a": (4,), "model.c": (3,)})
    assert problem.what == (
        "the checkpoint is of another model: a is (2,), the model's (4,); c is missing, the model's (3,); "
        "b is (3,), the model's missing"
    )
    assert check_tensors({"model.a": (2,)}, {"model.a": (2,)}) == []
