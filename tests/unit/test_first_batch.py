"""The first batch is looked at, and nothing is left of the look."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from builder.errors import BuilderError
from builder.first_batch import check_first_batch
from builder.lit_module import assemble, plan_run

CONFIG = {
    "model": {
        "inputs": {"ids": {"shape": ["batch", "time"], "dtype": "int64", "range": [0, 10]}},
        "layers": {
            "emb": {"kind": "Embedding", "num_embeddings": 10, "embedding_dim": 4},
            "flat": {"kind": "Flatten"},
            "norm": {"kind": "BatchNorm1d", "num_features": 12},
            "drop": {"kind": "Dropout", "p": 0.5},
            "head": {"kind": "Linear", "in_features": 12, "out_features": 2},
        },
    },
    "task": {"batch": ["ids", "y"], "loss": "cross_entropy(model(ids), y)"},
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
}


class Data(pl.LightningDataModule):
    def __init__(self, *tensors):
        super().__init__()
        self.tensors = tensors

    def train_dataloader(self):
        return DataLoader(TensorDataset(*self.tensors), batch_size=4, shuffle=True)


def ids(highest=9):
    return torch.tensor([[0, 1, highest]] * 8)


def look(*tensors, config=CONFIG):
    plan = plan_run(config)
    lit = assemble(plan)
    check_first_batch(lit, plan.proof, Data(*tensors))
    return lit


def test_look_leaves_weights_buffers_mode_hooks_and_random_state_as_they_were():
    plan = plan_run(CONFIG)
    lit = assemble(plan)
    before, state = copy.deepcopy(lit.state_dict()), torch.get_rng_state()
    check_first_batch(lit, plan.proof, Data(ids(), torch.zeros(8, dtype=torch.int64)))
    after = lit.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in lit.model.modules())
    assert not any(module._forward_pre_hooks for module in lit.modules())
    assert all(parameter.grad is None for parameter in lit.parameters())


@pytest.mark.parametrize(
    ("tensors", "change", "message"),
    [
        pytest.param((ids(),), {}, r"task\.batch: the data gives batches of 1, the task names 2", id="arity"),
        pytest.param(
            (ids(12), torch.zeros(8, dtype=torch.int64)),
            {},
            r"inputs\.ids\.range: .* from 0 to 12",
            id="declared range",
        ),
        pytest.param(
            (ids()[:, :2].unsqueeze(-1), torch.zeros(8, dtype=torch.int64)),
            {},
            r"inputs\.ids: the batch has shape",
            id="shape",
        ),
        pytest.param(
            (ids(), torch.zeros(8)), {}, r"task: on the first batch \(\(4, 3\) int64, \(4,\) float32\)", id="loss"
        ),
        pytest.param(
            (ids(), torch.zeros(8, dtype=torch.int64)),
            {"loss": "model(ids)"},
            r"task\.loss: the loss is \(4, 2\)",
            id="scalar",
        ),
        pytest.param(
            (ids(), torch.zeros(8, dtype=torch.int64)),
            {"loss": "y.sum()"},
            r"task\.loss: the loss is \(\) int64",
            id="integer",
        ),
    ],
)
def test_batch_is_refused(tensors, change, message):
    config = {**CONFIG, "task": {**CONFIG["task"], **change}}
    with pytest.raises(BuilderError, match=message):
        look(*tensors, config=config)


@pytest.mark.parametrize("index", [10, -1])
def test_index_outside_an_embedding_is_named_before_it_is_used(index):
    config = copy.deepcopy(CONFIG)
    config["model"]["inputs"]["ids"]["range"] = None
    with pytest.raises(BuilderError, match=rf"layers\.emb: index {index} in the first batch; 'emb' has rows 0 to 9"):
        look(ids(index), torch.zeros(8, dtype=torch.int64), config=config)


def test_refused_batch_leaves_no_hook_behind():
    plan = plan_run(CONFIG)
    lit = assemble(plan)
    with pytest.raises(BuilderError):
        check_first_batch(lit, plan.proof, Data(ids(12), torch.zeros(8, dtype=torch.int64)))
    assert not any(module._forward_pre_hooks for module in lit.modules())
    assert lit.model.training
