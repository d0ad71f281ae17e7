"""Law L10: watching changes nothing. Losses and weights are bit-identical with statistics on and off."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import builder
from builder.stats.callback import ParameterStatistics
from builder.stats.store import read_outputs, read_stats

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # lightning 2.6 on torch 2.13
]

MLP = {
    "inputs": {"x": {"shape": ["batch", 12]}},
    "layers": {
        "fc1": {"kind": "Linear", "in_features": 12, "out_features": 150},
        "act": {"kind": "ReLU"},
        "fc2": {"kind": "Linear", "in_features": 150, "out_features": 150},
        "out": {"kind": "Linear", "in_features": 150, "out_features": 4},
    },
}
BATCH_NORM = {
    "inputs": {"x": {"shape": ["batch", 12]}},
    "layers": {
        "fc1": {"kind": "Linear", "in_features": 12, "out_features": 40},
        "norm": {"kind": "BatchNorm1d", "num_features": 40},
        "act": {"kind": "Tanh"},
        "drop": {"kind": "Dropout", "p": 0.3},
        "out": {"kind": "Linear", "in_features": 40, "out_features": 4},
    },
}
GPT = Path(__file__).parents[2] / "conf" / "model" / "gpt.yaml"
SMALL_GPT = {"d": 32, "depth": 2, "heads": 2}


class Checkpointed(torch.nn.Module):
    """The backward pass computes the middle again."""

    def __init__(self):
        super().__init__()
        self.model = builder.build(BATCH_NORM, seed=1)

    def forward(self, x):
        model = self.model
        x = checkpoint(lambda x: model.drop(model.act(model.norm(x)).relu()), model.fc1(x), use_reentrant=False)
        return model.out(x)


class Lit(pl.LightningModule):
    def __init__(self, model, loss):
        super().__init__()
        self.model, self.loss, self.losses = model, loss, []

    def training_step(self, batch, index):
        loss = self.loss(self.model, *batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, index):
        self.log("val", self.loss(self.model, *batch))

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)


def classified(model, x, y):
    return torch.nn.functional.cross_entropy(model(x), y)


def next_token(model, ids):
    return torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def features():
    draw = torch.Generator().manual_seed(2)
    return TensorDataset(torch.randn(96, 12, generator=draw), torch.randint(4, (96,), generator=draw))


def texts():
    return TensorDataset(torch.randint(50, (96, 16), generator=torch.Generator().manual_seed(2)))


def fitted(run_dir, build, loss, data, watched, options):
    """A model and its losses after 12 steps, and the states of what is random afterwards."""
    torch.manual_seed(0)
    lit = Lit(build(), loss)
    watch = ParameterStatistics(
        every_n_steps=1, slower_every=2, spectral_norm=True, effective_rank=64, max_overhead=None, directory=run_dir
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=12, default_root_dir=run_dir, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[watch] if watched else [], **options,
    )  # fmt: skip
    trainer.fit(lit, DataLoader(data, batch_size=8, shuffle=True), DataLoader(data, batch_size=48))
    return lit, torch.get_rng_state()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}, id="accumulated and clipped"),
        pytest.param({"precision": "bf16-mixed"}, id="bf16-mixed"),
        pytest.param({"precision": "bf16-true"}, id="bf16"),
    ],
)
@pytest.mark.parametrize(
    ("build", "loss", "data"),
    [
        pytest.param(lambda: builder.build(MLP, seed=1), classified, features(), id="MLP"),
        pytest.param(lambda: builder.build(GPT, args=SMALL_GPT, seed=1), next_token, texts(), id="GPT"),
        pytest.param(lambda: builder.build(BATCH_NORM, seed=1), classified, features(), id="BatchNorm and dropout"),
        pytest.param(
            lambda: builder.build(BATCH_NORM, seed=1, freeze={"first": {"match": "fc1.*"}}),
            classified, features(), id="a frozen layer",
        ),
        pytest.param(Checkpointed, classified, features(), id="activation checkpoints"),
    ],
)  # fmt: skip
def test_losses_and_weights_are_the_same_bits_with_statistics_on_and_off(tmp_path, build, loss, data, options):
    alone, left = fitted(tmp_path / "alone", build, loss, data, False, options)
    watched, state = fitted(tmp_path / "watched", build, loss, data, True, options)
    assert len(set(alone.losses)) > 6
    assert watched.losses == alone.losses
    assert torch.equal(state, left), "no random number was drawn"
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name
    rows = read_stats(tmp_path / "watched")
    assert rows["step"].unique().sort().to_list() == list(range(1, 13))
    assert rows["distance"].is_not_null().any() and rows["spectral_norm"].is_not_null().any()
    assert read_outputs(tmp_path / "watched")["step"].unique().sort().to_list() == list(range(1, 13))
    assert not any(module._forward_hooks for module in watched.model.modules())
