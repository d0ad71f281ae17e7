"""What a run leaves, how it stops and goes on, and that what is frozen stays as it was."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

import builder
from builder.config import composed
from builder.lit_module import plan_run
from builder.stats.store import read_stats

SMALL = ["trainer=cpu", "model.args.hidden=16", "trainer.max_epochs=2", "scheduler=none"]
QUIET = [*SMALL, "stats=none", "logger=none", "test=false"]


class Interrupts(pl.Callback):
    """Presses Ctrl-C after some batches."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.batches:
            raise KeyboardInterrupt


class FailsInOneProcess(pl.Callback):
    """Has a fault in the second process."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 3:
            raise ValueError("one of two")


class Breaks(pl.Callback):
    """Has a fault."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        1 / 0  # noqa: B018


class Overwrites(pl.Callback):
    """Gives a parameter another value from a step on."""

    def __init__(self, step: int, name: str, value: str) -> None:
        self.step, self.name, self.value = step, name, float(value)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step >= self.step:
            with torch.no_grad():
                pl_module.model.get_parameter(self.name).fill_(self.value)


class Twice(torch.nn.Linear):
    """A layer of a caller's own."""


def test_run_leaves_its_config_source_table_metrics_events_statistics_and_checkpoints(command):
    ended = command(*SMALL, "stats.every_n_steps=10")
    assert ended.code == 0
    assert {
        "config.yaml", "model.py", "parameters.json", "metrics.csv", "result.json",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", "weights.safetensors", ".hydra/overrides.yaml",
    } <= set(ended.files)  # fmt: skip
    assert any(file.startswith("tensorboard/events.out.tfevents") for file in ended.files)
    assert sorted(set(read_stats(ended.directory)["step"])) == [10, 20, 30]
    assert not any(file.endswith(".part") for file in ended.files)

    config = OmegaConf.load(ended.directory / "config.yaml")
    assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(config, resolve=True), "the config is resolved"
    assert config.model.args.hidden == 16

    assert "class DigitsMlp" in (ended.directory / "model.py").read_text()
    header = (ended.directory / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"epoch", "step", "train/loss", "val/loss", "val/accuracy", "test/loss", "test/accuracy"} <= set(header)

    result = ended.result
    assert (result["status"], result["error"]) == ("ok", None)
    assert "stats.every_n_steps=10" in result["overrides"]
    assert {"train/loss", "val/loss", "val/accuracy", "test/loss", "test/accuracy"} <= set(result["metrics"])
    assert list(result["references"]) == ["majority class accuracy"]
    assert "majority class accuracy" in ended.out
    assert str(ended.directory) in ended.out


@pytest.mark.parametrize("test", ["true", "false"])
def test_weights_of_the_best_checkpoint_are_exported_after_a_run(command, test):
    ended = command(*QUIET, f"test={test}", "mode=min", "trainer.max_epochs=3")  # the least accuracy is the best here
    exported, best = load_file(ended.directory / "weights.safetensors"), ended.weights("best")
    saved = torch.load(ended.directory / "checkpoints" / "best.ckpt", weights_only=True)
    last = torch.load(ended.directory / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["epoch"] < last["epoch"] == 2, "training went on after the best epoch"
    assert exported.keys() == best.keys()
    assert all(torch.equal(exported[name], value) for name, value in best.items())


def test_printed_totals_are_the_sums_of_the_table(command):
    ended = command(*QUIET, "trainer.max_epochs=1", "+freeze.first={match:'fc1.*'}")
    rows = ended.table["parameters"]
    trainable = sum(row["numel"] for row in rows if row["trainable"])
    frozen = sum(row["numel"] for row in rows if not row["trainable"])
    assert (frozen, trainable) == (64 * 16 + 16, 16 * 16 + 16 + 16 * 10 + 10)
    for total in (trainable, frozen, trainable + frozen):
        assert f"{total:,}" in ended.out


def test_resumed_run_goes_on_where_the_first_one_stopped(command):
    straight = command(*QUIET, "trainer.max_epochs=4", into="straight")
    first = command(*QUIET, into="first")
    ended = command(*QUIET, "trainer.max_epochs=4", f"ckpt_path={first.directory}/checkpoints/last.ckpt", into="second")
    assert (straight.code, ended.code) == (0, 0)
    assert "epoch 4" in ended.out
    before, after = (
        torch.load(run.directory / "checkpoints" / "last.ckpt", weights_only=True) for run in (first, ended)
    )
    assert (before["epoch"], after["epoch"]) == (1, 3)  # counted from 0
    assert after["global_step"] == 2 * before["global_step"]
    assert list(after["state_dict"]) == list(before["state_dict"])
    assert not torch.equal(ended.weights()["fc1.weight"], first.weights()["fc1.weight"])
    assert all(torch.equal(value, straight.weights()[name]) for name, value in ended.weights().items())


def test_early_stopping_stops(command):
    ended = command(*QUIET, "trainer.max_epochs=50", "optimizer.lr=0.0", "early_stopping.patience=2")
    assert ended.code == 0
    saved = torch.load(ended.directory / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["epoch"] <= 3


# Lightning says that a loader cannot be resumed amid an epoch, which the user should read.
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(command, capsys):
    stop = "+callbacks.stop={_target_: test_run.Interrupts, batches: 5}"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        command(*QUIET, stop, into="stopped")
    said = capsys.readouterr().err
    assert "stopped at step 5; go on with ckpt_path=" in said
    file = said.split("ckpt_path=")[1].split()[0]
    assert file.endswith("stopped/checkpoints/interrupted.ckpt")
    left = Path(file).parents[1]
    result = json.loads((left / "result.json").read_text())
    assert (result["status"], result["error"]) == ("interrupted", None)
    assert "interrupted" in (left / "report.html").read_text() and f"the run so far: {left}" in said
    assert command(*QUIET, f"ckpt_path={file}", into="on").code == 0


def test_a_training_that_fails_leaves_its_result_and_a_report_that_says_why(command):
    ended = command(*SMALL, "optimizer.lr=1e9")
    assert ended.code == 2 and ended.err.count("train/loss: is nan at step 3") == 1
    assert (ended.result["status"], ended.result["metrics"]) == ("failed", {})
    assert "train/loss: is nan at step 3" in ended.result["error"]
    assert "train/loss: is nan at step 3" in (ended.directory / "report.html").read_text()


@pytest.mark.slow
def test_one_of_two_processes_that_fails_leaves_a_checkpoint_and_no_process_that_waits(tmp_path):
    root = Path(__file__).parents[2]
    two = [*SMALL, "trainer=cpu", "+trainer.strategy=ddp", "trainer.devices=2"]
    fails = "+callbacks.fails._target_=test_run.FailsInOneProcess"
    done = subprocess.run(
        [sys.executable, root / "train.py", *two, fails, f"hydra.run.dir={tmp_path}"],
        capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    assert done.returncode != 0
    assert "one of two" in done.stderr and f"go on with ckpt_path={tmp_path}" in done.stderr
    saved = torch.load(tmp_path / "checkpoints" / "interrupted.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"


LOSE = "+callbacks.lose={{_target_: test_run.Overwrites, step: {step}, name: fc1.bias, value: {value}}}"


@pytest.mark.parametrize("action", ["stop", "warn"])
def test_checkpoints_of_finite_weights_outlive_those_that_are_lost(command, action):
    epoch = 5  # steps
    overrides = ["trainer.max_epochs=3", f"+trainer.limit_train_batches={epoch}", f"stats.on_nonfinite={action}"]
    ended = command(*QUIET, *overrides, LOSE.format(step=2 * epoch, value="nan"))
    assert ended.code == (2 if action == "stop" else 0)
    for name in ("best", "last"):
        saved = torch.load(ended.directory / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert saved["global_step"] == epoch
        assert all(bool(value.isfinite().all()) for value in ended.weights(name).values())
        assert (
            ended.err.count(f"{name}.ckpt: not saved at step {2 * epoch}; weights or running statistics are not finite")
            == 1
        )
    assert not (ended.directory / "checkpoints" / "interrupted.ckpt").exists()


def test_what_is_frozen_may_be_infinite_in_a_checkpoint(command, tmp_path):
    stop = "+callbacks.stop={_target_: test_run.Interrupts, batches: 40}"
    masked = ["+freeze.mask={match: fc1.bias}", "stats.on_nonfinite=ignore", LOSE.format(step=1, value="-inf")]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        command(*QUIET, "trainer.max_epochs=5", *masked, stop)
    for name in ("last", "interrupted"):
        saved = torch.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
        assert torch.equal(saved["model.fc1.bias"], torch.full((16,), -torch.inf))


WORKER = """
from pathlib import Path
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
import builder
from builder.lit_module import LitModule
from builder.progress import LastCheckpoint
from test_run import PLAIN

sharded = sys.argv[3] == "sharded"


class Loses(LitModule):
    def configure_model(self):
        if sharded and not hasattr(self.model.fc.weight, "device_mesh"):
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

    def on_train_epoch_end(self):
        if self.current_epoch == 1 and self.global_rank == 1:
            with torch.no_grad():
                weight = self.model.fc.weight
                (weight.to_local() if sharded else weight)[-1].fill_(float("nan"))


lit = builder.lightning_module(PLAIN)
lit.__class__ = Loses
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(8, 3), torch.zeros(8, 4)), batch_size=2)
strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=False) if sharded else DDPStrategy()
trainer = pl.Trainer(
    accelerator="cpu", devices=2, strategy=strategy, max_epochs=2, logger=False, enable_progress_bar=False,
    callbacks=[LastCheckpoint(folder, "last", enable_version_counter=False)], enable_model_summary=False,
)
trainer.fit(lit, loader)
if trainer.global_rank == 0:
    saved = torch.load(Path(folder) / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 0 and saved["state_dict"]["model.fc.weight"].isfinite().all()
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["data-parallel", "sharded"])
def test_processes_agree_not_to_save_what_one_of_them_has_lost(two_processes, how):
    two_processes(WORKER, how)


def test_a_fault_in_code_leaves_them_as_well(command, tmp_path):
    with pytest.raises(ZeroDivisionError):
        command(*QUIET, "+callbacks.stop={_target_: test_run.Breaks}", into="broken")
    result = json.loads((tmp_path / "broken" / "result.json").read_text())
    assert (result["status"], result["error"]) == ("failed", "division by zero")
    assert "division by zero" in (tmp_path / "broken" / "report.html").read_text()


def test_init_seed_alone_decides_the_initial_values():
    def values(*overrides):
        config, _ = composed(["model.args.hidden=16", *overrides])
        return builder.lightning_module(config).model.state_dict()["fc1.weight"]

    first = values("seed=1", "init_seed=3")
    assert torch.equal(values("seed=2", "init_seed=3"), first)
    assert not torch.equal(values("seed=1", "init_seed=4"), first)
    assert torch.equal(values("seed=3"), first), "by default init_seed is the seed"


def test_seed_orders_the_data(command):
    runs = [
        command(*QUIET, "trainer.max_epochs=1", f"seed={seed}", "init_seed=3", into=f"{place}")
        for place, seed in enumerate((1, 1, 2))
    ]
    weights = [run.weights()["fc1.weight"] for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_three_kinds_draws_its_initial_values(command):
    ended = command(
        "+recipes=three_kinds", "trainer=cpu", "trainer.max_epochs=1", "data.windows_per_epoch=64", "stats=none"
    )
    assert ended.code == 0
    assert (ended.directory / "initial_values.png").read_bytes().startswith(b"\x89PNG")
    rows = ended.table["parameters"]
    assert {row["name"]: row["numel"] for row in rows if row["numel"] == 3200}.keys() == {
        "weight", "linear.weight", "embedding.weight",
    }  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_parameter_keeps_every_bit_under_weight_decay(command, optimizer):
    overrides = [*QUIET, f"optimizer={optimizer}", "optimizer.weight_decay=0.1", "+freeze.first={match:'fc1.*'}"]
    config, _ = composed(overrides)
    before = builder.lightning_module(config).model.state_dict()
    after = command(*overrides).weights()
    assert {name for name in after if torch.equal(after[name], before[name])} == {"fc1.weight", "fc1.bias"}


PLAIN = {
    "model": {
        "args": {"d": 4},
        "inputs": {"x": {"shape": ["batch", 3]}},
        "layers": {"fc": {"kind": "Linear", "in_features": 3, "out_features": "=d"}},
    },
    "task": {"batch": ["x", "y"], "loss": "mse_loss(model(x), y)"},
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
    "init": {"all": {"min_ndim": 2, "policy": "ones"}},
    "init_seed": 7,
}


def test_lightning_module_from_plain_data_is_one_that_trains(given):
    lit = builder.lightning_module(given(PLAIN))
    assert torch.equal(lit.model.fc.weight, torch.ones(4, 3))
    optimizer = lit.configure_optimizers()
    assert optimizer.param_groups[0]["lr"] == 0.1
    batch = (torch.ones(2, 3), torch.zeros(2, 4))
    before = lit.task.loss(lit.model, batch)
    before.backward()
    optimizer.step()
    assert lit.task.loss(lit.model, batch) < before
    assert lit(batch[0]).shape == (2, 4)


def test_scheduler_goes_to_lightning_with_its_interval(given):
    scheduler = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2, "interval": "step"}
    made = builder.lightning_module(given({**copy.deepcopy(PLAIN), "scheduler": scheduler})).configure_optimizers()
    assert made["lr_scheduler"]["interval"] == "step"
    assert made["lr_scheduler"]["scheduler"].step_size == 2


def test_plan_keeps_memory_unspent():
    assert all(parameter.is_meta for parameter in plan_run(PLAIN).proof.meta.parameters())


def test_frozen_parameters_never_reach_the_optimizer(given):
    frozen = {**copy.deepcopy(PLAIN), "freeze": {"bias": {"match": "*.bias"}}}
    optimizer = builder.lightning_module(given(frozen)).configure_optimizers()
    assert [tuple(p.shape) for group in optimizer.param_groups for p in group["params"]] == [(4, 3)]


@pytest.mark.parametrize("section", ["model", "task", "optimizer"])
def test_missing_section_is_named(refusal, section):
    problem = refusal(builder.lightning_module, {key: value for key, value in PLAIN.items() if key != section})
    assert (problem.address, problem.what) == (section, "is missing")


def test_one_allowed_prefix_may_be_given_as_a_text(refusal):
    model = copy.deepcopy(PLAIN["model"])
    model["layers"]["fc"]["kind"] = f"{__name__}.Twice"
    config = {**PLAIN, "model": model}
    for built in (builder.build(model, allow=__name__), builder.lightning_module(config, allow=__name__).model):
        assert isinstance(built.fc, Twice)
    assert builder.prove(model, allow=__name__).parameters[0].kind == "Twice"
    assert refusal(builder.prove, model, allow="mypack").hint == "allowed: mypack"


@pytest.mark.parametrize("batch", [5, "x", (torch.zeros(2, 3) for _ in range(1))], ids=["number", "text", "generator"])
def test_what_is_no_batch_is_refused(refusal, batch):
    problem = refusal(builder.build, PLAIN["model"], batch=batch)
    assert (problem.address, problem.what) == ("batch", f"is a {type(batch).__name__}")
    assert problem.hint == "give a tensor, a tuple of tensors, or a mapping by name"


def test_parameters_json_is_the_table_of_the_library(command):
    ended = command(*QUIET, "trainer.max_epochs=1")
    config, _ = composed(QUIET)
    names = [row.name for row in builder.parameters(builder.lightning_module(config).model)]
    assert all(f'"{name}"' in json.dumps(ended.table) for name in names)
