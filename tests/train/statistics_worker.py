"""A fit on one or two processes, for the tests of statistics: `statistics_worker.py STRATEGY RUN_DIR`."""

import sys
import warnings

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import builder
from builder.stats.callback import ParameterStatistics

MODEL = {
    "inputs": {"ids": {"shape": ["batch", 5], "dtype": "int64", "range": [0, 7]}},
    "layers": {
        "emb": {"kind": "Embedding", "num_embeddings": 7, "embedding_dim": 6},
        "fc": {"kind": "Linear", "in_features": 6, "out_features": 9},
        "act": {"kind": "ReLU"},
        "squash": {"kind": "Sigmoid"},
        "scale": {"kind": "Parameter", "shape": [9], "init": "ones"},
        "head": {"kind": "Linear", "in_features": 9, "out_features": 7, "bias": False},
    },
    "forward": "head(squash(act(fc(emb(ids)))) * scale)",
    "init": {
        "scale": {"match": "scale", "policy": "normal"},
        "dead": {"match": "fc.bias", "policy": "values", "values": [-9, -9, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]},
    },
    "freeze": {"positions": {"match": "fc.bias"}},
}


class Lit(pl.LightningModule):
    """Each process takes its share of every batch."""

    def __init__(self, world):
        super().__init__()
        self.model = builder.build(MODEL, seed=3)
        self.world = world

    def configure_model(self):
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            from torch.distributed.fsdp import fully_shard

            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.model.fc, mesh=mesh)
            fully_shard(self.model, mesh=mesh)

    def training_step(self, batch, index):
        ids = batch[0].chunk(self.world)[self.global_rank]
        logits = self.model(ids)
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids.roll(1, 1).flatten())

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.5, momentum=0.9)


def main(strategy, run_dir):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    world = 1 if strategy == "one" else 2
    strategies = {
        "one": lambda: "auto",
        "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
        "fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    }
    ids = torch.randint(7, (48, 5), generator=torch.Generator().manual_seed(1))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy=strategies[strategy](),
        max_steps=6,
        accumulate_grad_batches=2,
        gradient_clip_val=0.05,
        use_distributed_sampler=False,
        default_root_dir=run_dir,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ParameterStatistics(
                every_n_steps=2,
                slower_every=3,
                spectral_norm=True,
                effective_rank=8,
                max_overhead=None,
                directory=run_dir,
            )
        ],
    )
    trainer.fit(Lit(world), DataLoader(TensorDataset(ids), batch_size=4))


if __name__ == "__main__":
    main(*sys.argv[1:])
