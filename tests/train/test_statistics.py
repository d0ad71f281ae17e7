"""Statistics in a real fit: what is logged, when, and that watching changes nothing (law L10)."""

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import builder
from builder.errors import BuilderError
from builder.stats import callback, record
from builder.stats.callback import ParameterStatistics
from builder.stats.guards import VerdictsFile
from builder.stats.store import read_outputs, read_stats
from builder.stats.verdicts import verdicts
from builder.table import as_data
from builder.whole import write_text

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # lightning 2.6 on torch 2.13
]

NAMES = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.drop, self.fc2 = nn.Linear(8, 16), nn.Dropout(0.2), nn.Linear(16, 3)

    def forward(self, x):
        return self.fc2(self.drop(self.fc1(x).relu()))


class Lit(pl.LightningModule):
    def __init__(self, fail_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.model = Net()
        self.losses, self.gradients, self.fail_at = [], [], fail_at

    def training_step(self, batch, index):
        if index == self.fail_at:
            raise RuntimeError("a fault in the loss")
        loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def on_before_optimizer_step(self, optimizer):
        self.gradients.append(self.model.fc1.weight.grad.double().square().mean().sqrt().item())

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.05)


def batches():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(240, 8, generator=generator), torch.randint(3, (240,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)


def fit(tmp_path, module, callbacks, ckpt_path=None, **options):
    options = {"max_steps": 30, "logger": False, "enable_checkpointing": False, "log_every_n_steps": 1} | options
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    torch.manual_seed(3)
    trainer.fit(module, batches(), ckpt_path=ckpt_path)
    return trainer


def steps(tmp_path):
    return read_stats(tmp_path)["step"].unique(maintain_order=True).to_list()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"accumulate_grad_batches": 3, "max_steps": 10}, id="accumulated"),
        pytest.param({"gradient_clip_val": 0.1}, id="clipped"),
        pytest.param({"precision": "bf16-mixed"}, id="bf16"),
    ],
)
def test_watching_changes_no_bit_of_losses_or_weights(tmp_path, options):
    alone, watched = Lit(), Lit()
    fit(tmp_path / "alone", alone, [], **options)
    fit(tmp_path, watched, [ParameterStatistics(max_overhead=None, every_n_steps=1, flush_every=1)], **options)
    assert len(alone.losses) == 30 and len(set(alone.losses)) > 20
    assert watched.losses == alone.losses
    for name, parameter in alone.model.named_parameters():
        assert torch.equal(parameter, watched.model.get_parameter(name)), name
    assert steps(tmp_path) == list(range(1, options.get("max_steps", 30) + 1))


def test_each_multiple_of_the_interval_is_logged_once_for_each_parameter(tmp_path):
    fit(tmp_path, Lit(), [ParameterStatistics(max_overhead=None, every_n_steps=10, flush_every=2)])
    rows = read_stats(tmp_path)
    assert steps(tmp_path) == [10, 20, 30]
    assert rows["name"].to_list() == NAMES * 3
    assert rows["epoch"].to_list() == [0] * 12
    assert len(list((tmp_path / "stats" / "parameters").iterdir())) == 2, (
        "two steps in a file, the last one at the end of the fit"
    )


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        pytest.param({"max_steps": 31}, [4, 16, 28], id="the third in turn is the last as well"),
        pytest.param({"max_steps": 27}, [4, 16, 24], id="the last is out of turn"),
        pytest.param({"max_steps": -1, "max_epochs": 1}, [4, 16, 28], id="epochs"),
        pytest.param({"max_steps": -1, "max_time": {"seconds": 600}, "limit_train_batches": 23}, [4, 16], id="no end"),
    ],
)
def test_the_first_and_the_last_logged_step_have_the_slower_measures_as_well(tmp_path, options, measured):
    statistics = ParameterStatistics(max_overhead=None, every_n_steps=4, slower_every=3)
    stop = StopAfter(23) if "max_time" in options else pl.Callback()
    fit(tmp_path, Lit(), [statistics, stop], **options)
    rows = read_stats(tmp_path)
    assert rows.filter(rows["distance"].is_not_null())["step"].unique().sort().to_list() == measured


class StopAfter(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.step


def test_an_accumulating_batch_is_not_a_step(tmp_path):
    module = Lit()
    fit(
        tmp_path,
        module,
        [ParameterStatistics(max_overhead=None, every_n_steps=2)],
        max_steps=8,
        accumulate_grad_batches=3,
    )
    assert len(module.losses) == 24
    assert steps(tmp_path) == [2, 4, 6, 8]
    rms = read_stats(tmp_path).filter(name="fc1.weight")["gradient_rms"].to_list()
    assert rms == pytest.approx(module.gradients[1::2]), "the gradient of all batches of the step"
    assert min(read_stats(tmp_path)["update_rms"]) > 0


def test_the_gradient_is_the_one_before_clipping(tmp_path):
    module = Lit()
    fit(
        tmp_path, module, [ParameterStatistics(max_overhead=None, every_n_steps=1)], max_steps=3, gradient_clip_val=1e-6
    )
    rms = read_stats(tmp_path).filter(name="fc1.weight")["gradient_rms"].to_list()
    assert rms == pytest.approx(module.gradients)
    assert min(rms) > 1e-4


def test_frozen_and_tied_parameters_in_a_fit(tmp_path):
    module = Lit()
    module.model.fc1.requires_grad_(False)
    module.model.tied = module.model.fc2
    module.on_before_optimizer_step = lambda optimizer: None
    fit(tmp_path, module, [ParameterStatistics(max_overhead=None, every_n_steps=5)], max_steps=5)
    rows = read_stats(tmp_path)
    assert rows["name"].to_list() == NAMES
    assert rows["update_rms"].is_null().to_list() == [True, True, False, False]
    assert rows["gradient_rms"].is_null().to_list() == [True, True, False, False]


def test_a_logged_step_makes_exactly_one_transfer(tmp_path, monkeypatch):
    transfers = []
    to_host = record._to_host
    monkeypatch.setattr(record, "_to_host", lambda results: transfers.append(1) or to_host(results))
    fit(tmp_path, Lit(), [ParameterStatistics(max_overhead=None, every_n_steps=5)])
    assert len(transfers) == 6


class Twice(Lit):
    """Two optimizer steps a batch.

    Attributes:
        moves: Rms of the update of `fc1.weight` in each step.
    """

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.moves = []

    def training_step(self, batch, index):
        for _ in range(2):
            self.optimizers().zero_grad()
            self.manual_backward(super().training_step(batch, index))
            before = self.model.fc1.weight.detach().double()
            self.optimizers().step()
            self.moves.append((self.model.fc1.weight.detach().double() - before).square().mean().sqrt().item())


def test_manual_optimization_logs_each_of_a_batchs_steps(tmp_path):
    module = Twice()
    fit(tmp_path, module, [ParameterStatistics(max_overhead=None, every_n_steps=3)], max_steps=12)
    assert steps(tmp_path) == [3, 6, 9, 12]
    rows = read_stats(tmp_path).filter(name="fc1.weight")
    assert rows["gradient_rms"].to_list() == pytest.approx(module.gradients[2::3])
    assert rows["update_rms"].to_list() == pytest.approx(module.moves[2::3])


def test_outputs_of_the_second_step_of_a_batch_are_those_of_its_forward(tmp_path):
    module = Twice()
    given = []
    module.model.fc2.register_forward_hook(lambda layer, inputs, output: given.append(output.detach().mean().item()))
    fit(tmp_path, module, [ParameterStatistics(max_overhead=None, every_n_steps=4)], max_steps=12)
    assert read_outputs(tmp_path).filter(layer="fc2")["mean"].to_list() == pytest.approx(given[3::4])


class Gan(pl.LightningModule):
    """Two optimizers; the first steps in each batch that is a multiple of `every`, the second in all.

    Attributes:
        seen: By name and batch, the gradient's rms where its optimizer stepped, and the rms of its update.
    """

    automatic_optimization = False

    def __init__(self, every=1, toggle=False):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"make": nn.Linear(8, 8), "judge": nn.Linear(8, 1)})
        self.model.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.every, self.toggle, self.seen, self.outputs, self.last = every, toggle, {}, [], []

    def training_step(self, batch, index):
        self.outputs.append([])
        for number, name in enumerate(("make", "judge")):
            if number == 0 and index % self.every:
                continue
            optimizer = self.optimizers()[number]
            if self.toggle:
                self.toggle_optimizer(optimizer)
            made = self.model["make"](batch[0])
            self.outputs[-1].append(made.detach())
            loss = self.model["judge"](made).square().mean() * (1 if number else -1)
            optimizer.zero_grad()
            self.manual_backward(loss)
            weight = self.model[name].weight
            before = weight.detach().double()
            optimizer.step()
            moved = (weight.detach().double() - before).square().mean().sqrt().item()
            self.seen[name, index] = (weight.grad.double().square().mean().sqrt().item(), moved)
            if self.toggle:
                self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [torch.optim.Adam(self.model[name].parameters(), lr=lr) for name, lr in (("make", 0.01), ("judge", 0.1))]


GAN_NAMES = ["frozen", "make.weight", "make.bias", "judge.weight", "judge.bias"]


class InTurn(Gan):
    """Optimizers that step in every other batch."""

    def training_step(self, batch, index):
        optimizer = self.optimizers()[index % 2]
        loss = self.model["judge"](self.model["make"](batch[0])).square().mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def test_parameters_whose_optimizer_never_steps_in_a_logged_batch_have_their_weights_recorded(tmp_path, caplog):
    fit(tmp_path, InTurn(), [ParameterStatistics(max_overhead=None, every_n_steps=2)], max_steps=12)
    assert caplog.text.count("no logged batch had a step of the optimizer of make.weight, make.bias: ") == 1
    rows = read_stats(tmp_path)
    assert set(rows["name"]) == set(GAN_NAMES)
    make, judge = (rows.filter(rows["name"] == f"{name}.weight") for name in ("make", "judge"))
    assert judge["update_rms"].is_not_null().all() and make["update_rms"].is_null().all()
    assert make["rms"].is_not_null().all()
    table = [{"name": name, "trainable": True, "tied_to": None, "shape": [8]} for name in GAN_NAMES]
    assert not [verdict for verdict in verdicts(rows, read_outputs(tmp_path), table) if verdict.kind == "still"]


@pytest.mark.parametrize(
    ("module", "every"),
    [
        pytest.param(InTurn, 3, id="in turn"),
        pytest.param(InTurn, 20, id="nothing is logged"),
        pytest.param(Gan, 2, id="both in each batch"),
        pytest.param(Lit, 2, id="one optimizer"),
    ],
)
def test_nothing_is_said_where_all_optimizers_step_in_logged_batches(tmp_path, module, every, caplog):
    fit(tmp_path, module(), [ParameterStatistics(max_overhead=None, every_n_steps=every)], max_steps=12)
    assert "no logged batch" not in caplog.text


@pytest.mark.parametrize("toggle", [False, True], ids=["plain", "toggled"])
@pytest.mark.parametrize(
    ("every", "logged", "batches_of"),
    [
        pytest.param(4, [4, 8, 12], [1, 3, 5], id="the last step of a batch"),
        pytest.param(3, [3, 6, 9, 12], [1, 2, 4, 5], id="the first or the last"),
        pytest.param(1, [2, 4, 6, 8, 10, 12], [0, 1, 2, 3, 4, 5], id="each"),
    ],
)
def test_a_batch_in_which_two_optimizers_step_is_logged_as_a_whole(tmp_path, every, logged, batches_of, toggle):
    module = Gan(toggle=toggle)
    fit(tmp_path, module, [ParameterStatistics(max_overhead=None, every_n_steps=every)], max_steps=12)
    assert steps(tmp_path) == logged
    rows = read_stats(tmp_path)
    assert rows["name"].to_list() == GAN_NAMES * len(logged)
    for name in ("make", "judge"):
        found = rows.filter(name=f"{name}.weight")
        expected = [module.seen[name, batch] for batch in batches_of]
        assert found["gradient_rms"].to_list() == pytest.approx([gradient for gradient, _ in expected])
        assert found["update_rms"].to_list() == pytest.approx([moved for _, moved in expected])
    assert rows.filter(name="frozen")["update_rms"].null_count() == len(logged)
    outputs = read_outputs(tmp_path)
    assert outputs["layer"].to_list() == ["make", "judge"] * len(logged)
    means = [torch.cat(module.outputs[batch]).mean().item() for batch in batches_of]
    assert outputs.filter(layer="make")["mean"].to_list() == pytest.approx(means, abs=1e-6)


def test_of_an_optimizer_that_does_not_step_in_a_logged_batch_the_weights_alone_are_recorded(tmp_path):
    module = Gan(every=3)  # batches of 2, 1, 1, 2, 1, 1, ... steps
    fit(tmp_path, module, [ParameterStatistics(max_overhead=None, every_n_steps=2)], max_steps=12)
    rows = read_stats(tmp_path)
    assert steps(tmp_path) == [2, 4, 6, 8, 10, 12]
    of_make = rows.filter(name="make.weight")
    assert of_make["rms"].null_count() == 0 and of_make["gradient_rms"].null_count() == 3
    of_make = of_make.drop_nulls("update_rms")
    assert of_make["step"].to_list() == [2, 6, 10], "batches 0, 3 and 6 make steps 1-2, 5-6 and 9-10"
    assert of_make["update_rms"].to_list() == pytest.approx([module.seen["make", batch][1] for batch in (0, 3, 6)])
    assert rows.filter(name="judge.weight")["update_rms"].to_list() == pytest.approx(
        [module.seen["judge", batch][1] for batch in (0, 2, 3, 5, 6, 8)]
    )
    assert read_outputs(tmp_path)["step"].unique().sort().to_list() == [2, 4, 6, 8, 10, 12]


def test_a_batch_that_moves_nothing_that_is_watched_is_not_logged(tmp_path):
    module = Gan(every=3)
    watch = ParameterStatistics(max_overhead=None, every_n_steps=1, select={"match": "make.*"})
    fit(tmp_path, module, [watch], max_steps=12)
    rows = read_stats(tmp_path)
    assert rows["name"].to_list() == ["make.weight", "make.bias"] * 3
    assert rows["step"].unique().to_list() == [2, 6, 10]
    assert not any(layer._forward_hooks for layer in module.modules())


@pytest.mark.parametrize("every", [1, 3])
def test_watching_two_optimizers_changes_no_bit(tmp_path, every):
    alone, watched = Gan(every), Gan(every)
    fit(tmp_path / "alone", alone, [], max_steps=12)
    fit(tmp_path, watched, [ParameterStatistics(max_overhead=None, every_n_steps=1)], max_steps=12)
    assert watched.seen == alone.seen
    for name, parameter in alone.model.named_parameters():
        assert torch.equal(parameter, watched.model.get_parameter(name)), name


def test_lbfgs_is_measured_from_the_start_of_its_step(tmp_path):
    class Closure(Lit):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)

    module = Closure()
    start = module.model.fc1.weight.detach().clone()
    fit(tmp_path, module, [ParameterStatistics(max_overhead=None, every_n_steps=1)], max_steps=1)
    row = read_stats(tmp_path).filter(name="fc1.weight")
    moved = (module.model.fc1.weight.detach().double() - start.double()).square().mean().sqrt().item()
    assert len(module.gradients) > 1
    assert row["update_rms"].to_list() == [pytest.approx(moved)]
    assert row["gradient_rms"].to_list() == [pytest.approx(module.gradients[0])]


def test_tensorboard_gets_one_dict_for_each_logged_step_and_csv_gets_nothing(tmp_path, monkeypatch):
    calls = []
    tensorboard, csv = TensorBoardLogger(tmp_path), CSVLogger(tmp_path)
    monkeypatch.setattr(TensorBoardLogger, "log_metrics", lambda self, metrics, step: calls.append((metrics, step)))
    monkeypatch.setattr(CSVLogger, "log_metrics", lambda self, metrics, step: pytest.fail("CSV got statistics"))
    watch = ParameterStatistics(max_overhead=None, every_n_steps=10, to_loggers=["rms", "update_ratio"])
    fit(tmp_path, Lit(), [watch], logger=[tensorboard, csv])
    assert [step for _, step in calls] == [10, 20, 30]
    assert list(calls[0][0]) == [f"{measure}/{name}" for measure in ("rms", "update_ratio") for name in NAMES]


def test_tensorboard_shows_the_values_of_the_store(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="tb", version="0")
    fit(tmp_path, Lit(), [ParameterStatistics(max_overhead=None, every_n_steps=15)], logger=logger)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        events = EventAccumulator(logger.log_dir).Reload().Scalars("rms/fc1.weight")
    stored = read_stats(tmp_path).filter(name="fc1.weight")["rms"].to_list()
    assert [event.step for event in events] == [15, 30]
    assert [event.value for event in events] == pytest.approx(stored, rel=1e-6)


def test_an_exception_writes_what_was_measured_before_it(tmp_path):
    with pytest.raises(RuntimeError, match="a fault in the loss"):
        fit(tmp_path, Lit(fail_at=7), [ParameterStatistics(max_overhead=None, every_n_steps=1, flush_every=100)])
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7]


def test_nan_weights_are_recorded(tmp_path):
    module = Lit()
    module.model.fc1.weight.data[0, 0] = float("nan")
    fit(tmp_path, module, [ParameterStatistics(max_overhead=None, every_n_steps=1)], max_steps=1)
    assert read_stats(tmp_path)["nonfinite"].to_list() == [128, 16, 48, 3]


def test_a_saved_checkpoint_has_its_statistics_on_disk_and_a_resumed_run_continues_them(tmp_path):
    seen = []

    class Look(pl.Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            seen.append((trainer.global_step, steps(tmp_path)[-1]))

    watch = ParameterStatistics(max_overhead=None, every_n_steps=5, flush_every=100)
    trainer = fit(tmp_path, Lit(), [watch, Look()])
    file = tmp_path / "last.ckpt"
    trainer.save_checkpoint(file)
    save = pl.callbacks.ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=10, save_top_k=-1)
    watch = ParameterStatistics(max_overhead=None, every_n_steps=5, flush_every=100)
    fit(tmp_path, Lit(), [watch, Look(), save], file, max_steps=60, enable_checkpointing=True)
    assert seen == [(30, 30), (40, 40), (50, 50), (60, 60)]
    assert steps(tmp_path) == list(range(5, 61, 5))
    assert read_stats(tmp_path)["epoch"].is_sorted()


def cost(tmp_path):
    return json.loads((tmp_path / "stats" / "cost.json").read_text())


def test_the_cost_of_a_resumed_run_adds_up(tmp_path):
    watch = ParameterStatistics(max_overhead=None, every_n_steps=5)
    trainer = fit(tmp_path, Lit(), [watch])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    first = cost(tmp_path)
    assert (first["steps_logged"], first["every_n_steps"]) == (6, [[0, 5]])
    watch = ParameterStatistics(max_overhead=None, every_n_steps=10)
    fit(tmp_path, Lit(), [watch], tmp_path / "last.ckpt", max_steps=60)
    second = cost(tmp_path)
    assert (second["steps_logged"], second["every_n_steps"]) == (9, [[0, 5], [30, 10]])
    assert second["seconds"] > first["seconds"] and second["fit_seconds"] > first["fit_seconds"]
    assert second["share"] == pytest.approx(second["seconds"] / second["fit_seconds"], abs=1e-3)
    assert watch.cost == second


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"steps_logged": 1, "seconds": 1, "share": 0, "every_n_steps": 5}'])
def test_a_cost_that_cannot_be_read_is_begun_anew(tmp_path, text):
    (tmp_path / "stats").mkdir()
    (tmp_path / "stats" / "cost.json").write_text(text)
    fit(tmp_path, Lit(), [ParameterStatistics(max_overhead=None, every_n_steps=5)])
    assert cost(tmp_path)["steps_logged"] == 6


def test_a_second_fit_with_the_same_callback_keeps_the_start_of_the_first(tmp_path):
    module, watch = Lit(), ParameterStatistics(max_overhead=None, every_n_steps=10, slower_every=1)
    start = module.model.fc1.weight.detach().double()
    fit(tmp_path, module, [watch])
    fit(tmp_path / "on", module, [watch], max_steps=10)
    distance = read_stats(tmp_path / "on").filter(name="fc1.weight")["distance"].to_list()
    assert distance == [pytest.approx((module.model.fc1.weight.detach().double() - start).norm().item())]
    other = Lit()
    fit(tmp_path / "other", other, [watch], max_steps=10)
    distance = read_stats(tmp_path / "other").filter(name="fc1.weight")["distance"].to_list()
    assert distance == [pytest.approx((other.model.fc1.weight.detach().double() - start).norm().item())]


class SaveFirst(pl.Callback):
    """Saves a checkpoint at the end of the first epoch."""

    def __init__(self, file):
        self.file = file

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.file)


def losing(tmp_path, module, watches):
    """The directory of a run of 30 steps, and its checkpoint of step 10."""
    file = tmp_path / "saved.ckpt"
    fit(tmp_path / "run", module, [*watches, SaveFirst(file)], limit_train_batches=10)
    return tmp_path / "run", file


def test_a_new_run_into_a_used_directory_begins_new_statistics(tmp_path):
    watch = {"max_overhead": None, "every_n_steps": 5, "flush_every": 4}
    fit(tmp_path, Lit(), [ParameterStatistics(**watch)])
    assert steps(tmp_path) == [5, 10, 15, 20, 25, 30] and cost(tmp_path)["steps_logged"] == 6
    fit(tmp_path, Lit(), [ParameterStatistics(**watch)], max_steps=7)
    assert steps(tmp_path) == [5] and read_outputs(tmp_path)["step"].unique().to_list() == [5]
    assert cost(tmp_path)["steps_logged"] == 1
    assert [file.name for file in (tmp_path / "stats" / "parameters").iterdir()] == ["000000.parquet"]


def test_a_run_resumed_from_an_earlier_checkpoint_leaves_no_step_that_was_abandoned(tmp_path):
    def watch():
        return ParameterStatistics(max_overhead=None, every_n_steps=5, flush_every=100)

    run, saved = losing(tmp_path, Lit(), [watch()])
    first = read_stats(run).filter(step=10)
    assert steps(run) == [5, 10, 15, 20, 25, 30]
    fit(run, Lit(), [watch()], saved, max_steps=22, limit_train_batches=10)
    assert steps(run) == [5, 10, 15, 20]
    assert read_outputs(run)["step"].unique().sort().to_list() == [5, 10, 15, 20]
    assert read_stats(run).filter(step=10).equals(first)
    assert cost(run)["steps_logged"] == 6 + 2, "what was abandoned has cost time as well"


def test_a_second_fit_of_one_trainer_goes_on(tmp_path):
    watch = ParameterStatistics(max_overhead=None, every_n_steps=5)
    module = Lit()
    trainer = fit(tmp_path, module, [watch], max_steps=10)
    trainer.fit_loop.epoch_loop.max_steps = 20
    trainer.fit(module, batches())
    assert steps(tmp_path) == [5, 10, 15, 20] and cost(tmp_path)["steps_logged"] == 4


def test_a_broken_file_is_told_when_a_fit_goes_on_and_goes_when_one_begins(tmp_path):
    watch = ParameterStatistics(max_overhead=None, every_n_steps=5)
    run, saved = losing(tmp_path, Lit(), [watch])
    (run / "stats" / "parameters" / "000000.parquet").write_bytes(b"x")
    module = Lit()
    with pytest.raises(BuilderError, match=r"000000\.parquet: cannot be read"):
        fit(run, module, [ParameterStatistics()], saved)
    assert module.losses == []
    fit(run, Lit(), [ParameterStatistics(max_overhead=None, every_n_steps=5)], max_steps=5)
    assert steps(run) == [5]


class Built(Lit):
    """A module around a model of which each parameter's initial values can be drawn again."""

    def __init__(self, **options):
        super().__init__()
        layers = {
            "fc": {"kind": "Linear", "in_features": 8, "out_features": 16},
            "head": {"kind": "Linear", "in_features": 16, "out_features": 3},
        }
        inputs = {"x": {"shape": ["batch", 8]}}
        self.model = builder.build({"inputs": inputs, "layers": layers, "forward": "head(relu(fc(x)))"}, **options)

    def on_before_optimizer_step(self, optimizer):
        pass


@pytest.mark.parametrize(
    "before",
    [
        pytest.param([], id="without statistics"),
        pytest.param([ParameterStatistics(distance=False, outputs=None)], id="without distances"),
    ],
)
def test_a_run_resumed_from_one_without_distances_has_those_from_what_is_drawn(tmp_path, before):
    run, saved = losing(tmp_path, Built(), before)
    module = Built()
    start = module.model.fc.weight.detach().double().clone()
    watch = ParameterStatistics(max_overhead=None, every_n_steps=10, slower_every=1)
    fit(run, module, [watch], saved, max_steps=20, limit_train_batches=10)
    distance = read_stats(run).filter(name="fc.weight", step=20)["distance"].to_list()
    assert distance == [pytest.approx((module.model.fc.weight.detach().double() - start).norm().item(), rel=1e-5)]


def test_what_cannot_be_drawn_has_no_distance_after_a_checkpoint_without_statistics(tmp_path, caplog):
    run, saved = losing(tmp_path, Built(rng="torch"), [])
    watch = ParameterStatistics(max_overhead=None, every_n_steps=10, slower_every=1)
    with caplog.at_level(logging.INFO, logger="builder"):
        fit(run, Built(rng="torch"), [watch], saved, max_steps=20, limit_train_batches=10)
    assert read_stats(run).filter(step=20)["distance"].null_count() == 4
    assert "none in a resumed run for 4 parameters" in caplog.text and "kept on the CPU" not in caplog.text


def test_weights_that_were_loaded_before_a_fit_are_where_it_starts(tmp_path):
    module = Built()
    with torch.no_grad():
        module.model.fc.weight += 1.0
    start = module.model.fc.weight.detach().double().clone()
    watch = ParameterStatistics(max_overhead=None, every_n_steps=10, slower_every=1)
    run, saved = losing(tmp_path, module, [watch])
    distance = read_stats(run).filter(name="fc.weight", step=30)["distance"].to_list()
    assert distance == [pytest.approx((module.model.fc.weight.detach().double() - start).norm().item(), rel=1e-5)]
    watch = ParameterStatistics(max_overhead=None, every_n_steps=10, slower_every=1)
    fit(run, Built(), [watch], saved, max_steps=20, limit_train_batches=10)
    again = read_stats(run).filter(step=20)
    assert again.filter(again["distance"].is_null())["name"].to_list() == ["fc.weight"], "what the checkpoint says"


def test_what_a_test_run_loads_is_not_what_the_next_fit_goes_on_from(tmp_path):
    module, watch = Lit(), ParameterStatistics(max_overhead=None, every_n_steps=10, slower_every=1)
    module.test_step = lambda batch, batch_idx: None
    start = module.model.fc1.weight.detach().double().clone()
    _, saved = losing(tmp_path, module, [watch])
    trainer = pl.Trainer(
        callbacks=[watch], logger=False, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.test(module, DataLoader(batches().dataset, batch_size=8), ckpt_path=saved, verbose=False)
    fit(tmp_path / "on", module, [watch], max_steps=10)
    distance = read_stats(tmp_path / "on").filter(name="fc1.weight")["distance"].to_list()
    assert distance == [pytest.approx((module.model.fc1.weight.detach().double() - start).norm().item())]


def test_two_callbacks_watch_one_fit_each_into_its_own_directory(tmp_path):
    def watches(into):
        one = ParameterStatistics(max_overhead=None, every_n_steps=5, slower_every=1, directory=tmp_path / into / "all")
        two = ParameterStatistics(
            max_overhead=None,
            every_n_steps=2,
            slower_every=1,
            directory=tmp_path / into / "first",
            select={"match": "fc.*"},
        )
        return [one, two]

    _, saved = losing(tmp_path, Built(), watches("before"))
    fit(tmp_path, Built(), watches("on"), saved, max_steps=20, limit_train_batches=10)
    assert steps(tmp_path / "before" / "all") == [5, 10, 15, 20, 25, 30] and steps(tmp_path / "on" / "all") == [15, 20]
    assert steps(tmp_path / "on" / "first") == [12, 14, 16, 18, 20]
    for name in ("all", "first"):
        assert read_stats(tmp_path / "on" / name)["distance"].null_count() == 0
    assert set(read_stats(tmp_path / "on" / "first")["name"]) == {"fc.weight", "fc.bias"}
    assert read_outputs(tmp_path / "on" / "first")["layer"].unique().sort().to_list() == (
        read_outputs(tmp_path / "on" / "all")["layer"].unique().sort().to_list()
    )


@pytest.mark.parametrize("directory", [None, "."], ids=["the same", "the same in other words"])
def test_two_callbacks_that_write_to_one_directory_are_refused(tmp_path, directory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = Lit()
    watches = [ParameterStatistics(), ParameterStatistics(directory=directory, select={"match": "fc1.*"})]
    with pytest.raises(BuilderError, match=r"stats\.directory: more than one callback would write .*\n.*of its own"):
        fit(tmp_path, module, watches)
    assert module.losses == [] and not (tmp_path / "stats").exists()


class Stack(nn.Module):
    """Three members, which see the same batch."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 8, 3)), nn.Parameter(torch.zeros(3, 3))

    def forward(self, x):
        return (torch.einsum("bi,mij->bmj", x, self.weight) + self.bias).mean(1)


def stacked(**parameters):
    module = Lit()
    module.on_before_optimizer_step = lambda optimizer: None
    module.model = Stack()
    for name, value in parameters.items():
        setattr(module.model, name, nn.Parameter(value))
    return module


def test_loggers_get_each_member_of_a_stacked_model(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(TensorBoardLogger, "log_metrics", lambda self, metrics, step: sent.append(metrics))
    watch = ParameterStatistics(max_overhead=None, every_n_steps=5, stacked=True, to_loggers=["rms"])
    fit(tmp_path, stacked(), [watch], max_steps=5, logger=TensorBoardLogger(tmp_path))
    rows = read_stats(tmp_path)
    assert rows["member"].to_list() == [0, 1, 2] * 2
    keys = [f"rms/{name}/{member}" for name in ("weight", "bias") for member in range(3)]
    assert sent == [dict(zip(keys, rows["rms"], strict=True))]


@pytest.mark.parametrize(
    ("odd", "what"),
    [
        pytest.param(torch.tensor(1.0), "'odd' has no first axis", id="a single number"),
        pytest.param(torch.ones(4, 2), "'odd' has 4 members, 'weight' has 3", id="another number of members"),
    ],
)
def test_parameters_that_are_not_stacked_are_refused_by_name(tmp_path, odd, what):
    module = stacked(odd=odd)
    with pytest.raises(BuilderError, match=rf"stats\.stacked: {what}\n.*stats\.select") as raised:
        fit(tmp_path, module, [ParameterStatistics(stacked=True)])
    assert len(raised.value.problems) == 1 and module.losses == []
    watch = ParameterStatistics(every_n_steps=1, stacked=True, select={"except": "odd"})
    fit(tmp_path, stacked(odd=odd), [watch], max_steps=1)
    assert set(read_stats(tmp_path)["name"]) == {"weight", "bias"}


def test_a_fit_too_short_for_a_logged_step_says_so(tmp_path):
    watch = ParameterStatistics(every_n_steps=50)
    trainer = fit(tmp_path, Lit(), [watch], max_steps=19, limit_train_batches=19)
    assert watch.words() == "no step was logged: the fit took 19 steps, fewer than stats.every_n_steps=50"
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(tmp_path, Lit(), [watch], tmp_path / "last.ckpt", max_steps=20, limit_train_batches=19)
    assert watch.words().startswith("no step was logged: the fit took 1 step, ")
    fit(tmp_path, Lit(), [watch], tmp_path / "last.ckpt", max_steps=50, limit_train_batches=19)
    assert watch.words().startswith("statistics of 1 steps took ")


def test_a_module_without_a_model_is_refused_with_what_to_do(tmp_path):
    module = Lit()
    module.net, module.model = module.model, None
    with pytest.raises(BuilderError, match=r"Lit\.model: is no torch module, given NoneType: .*\n.*self\.model"):
        fit(tmp_path, module, [ParameterStatistics()])


def test_a_glob_of_outputs_that_matches_no_layer_stops_the_fit_before_its_first_step(tmp_path):
    module = Lit()
    with pytest.raises(BuilderError, match=r"stats\.outputs: 'fc3' matches no layer\n.*did you mean 'fc"):
        fit(tmp_path, module, [ParameterStatistics(outputs=["*.relu()", "fc3"])])
    assert module.losses == []


def test_the_directory_is_where_the_files_go(tmp_path):
    fit(
        tmp_path,
        Lit(),
        [ParameterStatistics(max_overhead=None, every_n_steps=5, directory=tmp_path / "run")],
        max_steps=5,
    )
    assert steps(tmp_path / "run") == [5]
    assert not (tmp_path / "stats").exists()


def test_a_selector_that_matches_nothing_stops_the_fit_before_its_first_step(tmp_path):
    module = Lit()
    with pytest.raises(BuilderError, match=r"stats\.select: .*fc9.* matches no parameter"):
        fit(tmp_path, module, [ParameterStatistics(select={"match": "fc9.*"})])
    assert module.losses == []


def test_only_selected_parameters_are_watched(tmp_path):
    fit(
        tmp_path,
        Lit(),
        [ParameterStatistics(max_overhead=None, every_n_steps=5, select={"match": "*.weight"})],
        max_steps=5,
    )
    assert read_stats(tmp_path)["name"].to_list() == ["fc1.weight", "fc2.weight"]


# ---- loggers that are extras -----------------------------------------------------------------------------------------

SMALL = ["trainer=cpu", "trainer.max_steps=20", "trainer.max_epochs=2", "model.args.hidden=16", "test=false"]


@pytest.mark.filterwarnings("ignore")  # what the packages warn of is theirs
def test_wandb_offline_gets_the_measures_that_people_look_at(command, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from pytorch_lightning.loggers import WandbLogger

    sent, log_metrics = [], WandbLogger.log_metrics

    def listen(self, metrics, step):
        sent.append((metrics, step))
        log_metrics(self, metrics, step)

    monkeypatch.setattr(WandbLogger, "log_metrics", listen)
    monkeypatch.setenv("WANDB_SILENT", "true")
    ended = command(*SMALL, "stats.every_n_steps=10", "logger=wandb")
    assert ended.code == 0, ended.err
    statistics = {step: metrics for metrics, step in sent if "rms/fc1.weight" in metrics}
    stored = read_stats(ended.directory).filter(name="fc1.weight")
    assert list(statistics) == [10, 20]
    assert [metrics["rms/fc1.weight"] for metrics in statistics.values()] == stored["rms"].to_list()
    assert (ended.directory / "metrics.csv").is_file()
    wandb.teardown()  # its own process writes the file
    (events,) = ended.directory.glob("wandb/offline-run-*/run-*.wandb")
    assert b"update_ratio/fc1.weight" in events.read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_mlflow_with_a_local_store_gets_the_measures_that_people_look_at(command, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setattr(callback, "_MLFLOW_BATCH", 7)
    ended = command(*SMALL, "stats.every_n_steps=10", "logger=mlflow")
    assert ended.code == 0, ended.err
    client = mlflow.MlflowClient(f"sqlite:///{ended.directory}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("builder").experiment_id])
    stored = read_stats(ended.directory)
    for name in stored["name"].unique():
        for measure in ("rms", "gradient_rms", "update_ratio"):
            history = client.get_metric_history(run.info.run_id, f"{measure}/{name}")
            assert [point.step for point in history] == [10, 20]
            assert [point.value for point in history] == stored.filter(name=name)[measure].to_list()


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_logger_whose_package_is_missing_is_refused_with_its_name(command, package, monkeypatch):
    from pytorch_lightning.loggers import mlflow, wandb

    modules = {"wandb": (wandb, "_WANDB_AVAILABLE"), "mlflow": (mlflow, "_MLFLOW_AVAILABLE")}
    monkeypatch.setattr(*modules[package], False)
    ended = command(*SMALL, f"logger={package}")
    assert ended.code == 2
    assert f"logger.{package}" in ended.err and ended.written == []


# ---- several processes ---------------------------------------------------------------------------------------------


def test_a_model_with_a_compiled_layer_trains_and_it_is_said_that_its_outputs_are_not_watched(tmp_path, caplog):
    module = Lit()
    module.model.fc1 = torch.compile(module.model.fc1, backend="eager")
    fit(tmp_path, module, [ParameterStatistics(max_overhead=None, every_n_steps=1)], max_steps=2)
    assert steps(tmp_path) == [1, 2]
    assert read_outputs(tmp_path).is_empty()
    assert caplog.text.count("outputs of layers are not measured: model.fc1 is compiled") == 1


BUILT = {
    "inputs": {"x": {"shape": ["batch", 8]}},
    "layers": {
        "gain": {"kind": "Parameter", "shape": [3], "init": "ones"},
        "fc1": {"kind": "Linear", "in_features": 8, "out_features": 16},
        "fc2": {"kind": "Linear", "in_features": 16, "out_features": 3},
    },
    "forward": "fc2(fc1(x).relu()) * gain",
}


@pytest.mark.parametrize("part", [None, "fc1"], ids=["the model", "a layer"])
def test_a_built_model_that_is_compiled_has_the_names_distances_and_verdicts_of_its_own(tmp_path, part):
    def fitted(directory, *, compiled):
        module = Lit()
        module.model = model = builder.build(BUILT)
        module.configure_optimizers = lambda: torch.optim.SGD([model.fc1.weight, model.fc2.weight], 0.1)
        write_text(directory / "parameters.json", json.dumps(as_data(builder.parameters(model))))
        if compiled and part:
            model.fc1 = torch.compile(model.fc1, backend="eager")
        elif compiled:
            module.model = torch.compile(model, backend="eager")
        watch = ParameterStatistics(every_n_steps=1, directory=directory, outputs=None, select={"kind": "Linear"})
        fit(directory, module, [watch, VerdictsFile(directory)], max_steps=3)
        return read_stats(directory), json.loads((directory / "verdicts.json").read_text()), watch._start.drawn

    (alone, said, drawn), (rows, told, again) = (fitted(tmp_path / str(c), compiled=c) for c in (False, True))
    assert rows["name"].to_list() == alone["name"].to_list() == NAMES * 3
    assert said and told == said
    assert rows["distance"].to_list() == alone["distance"].to_list() and again == drawn == set(alone["name"])


def test_a_glob_of_outputs_within_a_compiled_layer_is_no_mistake(tmp_path):
    module = Lit()
    module.model = nn.Sequential(torch.compile(module.model, backend="eager"))
    module.on_before_optimizer_step = lambda optimizer: None
    fit(tmp_path, module, [ParameterStatistics(every_n_steps=1, outputs="0.fc1")], max_steps=1)
    assert steps(tmp_path) == [1]


def test_globs_of_outputs_are_checked_in_a_compiled_model_as_well(tmp_path):
    module = Lit()
    module.model = torch.compile(module.model, backend="eager")
    with pytest.raises(BuilderError, match=r"stats\.outputs: 'fc3' matches no layer\n.*did you mean 'fc"):
        fit(tmp_path, module, [ParameterStatistics(outputs=["fc1", "fc3"])])
    assert module.losses == []


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return worker("one", tmp_path_factory.mktemp("one"))


def worker(strategy, run_dir):
    script = Path(__file__).with_name("statistics_worker.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, script, strategy, run_dir], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_come_to_the_numbers_of_one(tmp_path, strategy, one_process):
    worker(strategy, tmp_path)
    for read in (read_stats, read_outputs):
        alone, together = read(one_process), read(tmp_path)
        assert together.schema == alone.schema and together.height == alone.height > 0
        for column in alone.columns:
            for expected, found in zip(alone[column], together[column], strict=True):
                if isinstance(expected, float):
                    assert found == pytest.approx(expected, rel=1e-4, abs=1e-7), column
                elif column == "histogram":
                    assert found.to_list() == expected.to_list()
                else:
                    assert found == expected, column
    rows = read_stats(tmp_path)
    assert rows.filter(step=6)["distance"].null_count() == 0 and rows["clipped_gradient_rms"].null_count() == 3
    assert read_outputs(tmp_path).filter(layer="act")["dead"].to_list() == pytest.approx([2 / 9] * 3)


@pytest.mark.slow
def test_trainings_that_are_killed_keep_all_but_the_records_that_were_not_yet_written(tmp_path):
    script = Path(__file__).with_name("killed_worker.py")
    done = subprocess.run([sys.executable, script, tmp_path, "20"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    runs = sorted(tmp_path.iterdir(), key=lambda run: int(run.name))
    assert len(runs) == 20
    for run in runs:
        taken = int((run / "told").read_text().split()[-1])
        logged = taken // 2
        kept = steps(run)
        assert kept == list(range(2, 2 * len(kept) + 1, 2)), "from the first on, without a gap"
        assert logged - logged % 3 <= len(kept) <= logged + 1, "all flushes of three, and perhaps one that was not told"
        assert read_outputs(run)["step"].unique(maintain_order=True).to_list() in (kept, kept[:-3])
