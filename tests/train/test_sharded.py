"""The weights of a run whose model is sharded over processes are gathered into one file."""

import pytest
from safetensors.torch import load_file

WORKER = """
from pathlib import Path
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
import builder
from builder.lit_module import LitModule
from builder.progress import BestCheckpoint, LastCheckpoint
from builder.run import _write_weights

folder, distributed = Path(folder), sys.argv[3] == "parts"
config = {
    "model": {
        "inputs": {"x": {"shape": ["batch", 4]}},
        "layers": {
            "fc": {"kind": "Linear", "in_features": 4, "out_features": 9},
            "head": {"kind": "Linear", "in_features": 9, "out_features": 3},
            "twin": {"kind": "Linear", "in_features": 9, "out_features": 3},
        },
        "forward": "head(relu(fc(x))) + twin(relu(fc(x)))",
        "tie": {"twin.weight": "head.weight"},
    },
    "task": {"batch": ["x", "y"], "loss": "cross_entropy(model(x), y)"},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.1},
    "seed": 0,
}


class Sharded(LitModule):
    def configure_model(self):
        if not hasattr(self.model.fc.weight, "device_mesh"):
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])


lit = builder.lightning_module(config)
lit.__class__ = Sharded
torch.manual_seed(0)
data = torch.utils.data.TensorDataset(torch.randn(32, 4), torch.randint(0, 3, (32,)))
loader = torch.utils.data.DataLoader(data, batch_size=8)
checkpoints = [
    BestCheckpoint(folder / "checkpoints", "best", monitor="val/loss", mode="max", enable_version_counter=False),
    LastCheckpoint(folder / "checkpoints", "last", enable_version_counter=False),
]  # the first epoch is the best here
strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=distributed)
trainer = pl.Trainer(
    accelerator="cpu", devices=2, strategy=strategy, max_epochs=3, logger=False, callbacks=checkpoints,
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(lit, loader, loader)
assert trainer.checkpoint_callback.best_model_path.endswith("best.ckpt")
after = lit.model.head.weight.full_tensor().clone()
_write_weights(folder, trainer, lit)
builder.verify(lit.model)
assert not torch.equal(lit.model.head.weight.full_tensor(), after), "those of the best epoch, not of the last"
with torch.no_grad():
    expected = lit.model(data.tensors[0])
if trainer.global_rank == 0:
    whole = builder.build(config["model"])
    builder.load_weights(whole, folder)
    assert torch.allclose(whole(data.tensors[0]), expected, rtol=0, atol=1e-6)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", ["parts", "whole"])
def test_sharded_weights_are_gathered_into_one_file(tmp_path, two_processes, checkpoints):
    two_processes(WORKER, checkpoints)
    weights = load_file(tmp_path / "weights.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        "fc.weight": (9, 4), "fc.bias": (9,), "head.weight": (3, 9), "head.bias": (3,), "twin.bias": (3,),
    }  # fmt: skip
    assert (tmp_path / "checkpoints" / "best.ckpt").is_dir() == (checkpoints == "parts")
