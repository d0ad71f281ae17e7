"""The guard against numbers that are none: which step it stops at, what it names, and what it leaves."""

import json
import math
import types

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from builder.errors import BuilderError
from builder.stats import guards
from builder.stats.callback import ParameterStatistics
from builder.stats.guards import NonFiniteGuard, VerdictsFile


class Net(pl.LightningModule):
    """One Linear layer; `spoil` may put a NaN into something at a step."""

    def __init__(self, spoil=lambda module, batch: batch):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential()
        self.model.fc = nn.Linear(4, 2)
        self.spoil = spoil

    def training_step(self, batch, index):
        return self.model(self.spoil(self, batch)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(module, *callbacks, steps=8):
    trainer = pl.Trainer(
        max_steps=steps, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.ones(64, 4), batch_size=4))
    return trainer


def nan_batch(module, batch):
    return batch * float("nan") if module.global_step == 4 else batch


def nan_weight(module, batch):
    if module.global_step == 4:
        with torch.no_grad():
            module.model.fc.weight[0, :3] = float("inf")
    return batch


def nan_gradient(module, batch):
    if module.global_step == 4:
        module.model.fc.weight.register_hook(lambda gradient: gradient * float("nan"))
    return batch


@pytest.mark.parametrize(
    ("spoil", "every", "address", "cause"),
    [
        pytest.param(
            nan_batch, 50, "train/loss", "is nan at step 5; the weights are finite, the largest 0.", id="batch"
        ),
        pytest.param(nan_weight, 50, "train/loss", "is inf at step 5; not finite: fc.weight (3 values)", id="weight"),
        pytest.param(nan_gradient, 5, "fc.weight", "a gradient that is not finite at step 5; ", id="gradient"),
        pytest.param(nan_gradient, 50, "train/loss", "is nan at step 6; not finite: fc.weight (8", id="a step later"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*")
def test_first_nonfinite_number_stops_the_run(spoil, every, address, cause):
    module = Net(spoil)
    with pytest.raises(BuilderError) as caught:
        fit(module, NonFiniteGuard("stop", every))
    (problem,) = caught.value.problems
    assert (problem.address, cause in problem.what) == (address, True), str(caught.value)
    assert "smaller optimizer.lr" in problem.hint
    if spoil is nan_batch or every == 5:
        assert all(parameter.isfinite().all() for parameter in module.parameters())


@pytest.mark.filterwarnings("ignore:.*")
def test_warning_is_given_once_and_training_goes_on(capsys):
    trainer = fit(Net(nan_weight), NonFiniteGuard("warn"))
    assert trainer.global_step == 8
    said = capsys.readouterr().err
    assert said.count("training goes on") == 1
    assert "fc.weight (3 values)" in said


@pytest.mark.filterwarnings("ignore:.*")
def test_ignored_means_not_looked_at(capsys):
    assert fit(Net(nan_weight), NonFiniteGuard("ignore")).global_step == 8
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("every", [0, True, "often"])
def test_a_bad_interval_is_refused(every):
    with pytest.raises(BuilderError, match=r"stats\.every_n_steps: must be a whole number of at least 1, given "):
        NonFiniteGuard("stop", every)


def spoil_update(module, *_):
    """Makes weights infinite after the gradient was looked at, as a step that is too great does."""
    if module.global_step == 4:
        group = module.trainer.optimizers[0].param_groups[0]
        group["lr"] = float("inf")


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("statistics", [True, False], ids=["counted by statistics", "looked at by the guard"])
def test_a_weight_that_an_update_spoils_stops_the_run_before_another_batch(tmp_path, statistics):
    module = Net()
    module.on_before_optimizer_step = lambda optimizer: spoil_update(module)
    guard = NonFiniteGuard("stop", 5)
    watch = [ParameterStatistics(every_n_steps=5, directory=tmp_path, max_overhead=None)] if statistics else []
    saved = pl.callbacks.ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=1)
    trainer = pl.Trainer(
        max_steps=8, callbacks=[*watch, guard, saved], logger=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(BuilderError) as caught:
        trainer.fit(module, DataLoader(torch.ones(64, 4), batch_size=4))
    (problem,) = caught.value.problems
    assert problem.address == "fc.weight"
    assert (
        problem.what == "is not finite after its update at step 5; not finite: fc.weight (8 values), fc.bias (2 values)"
    )
    assert "the last good checkpoint is " in problem.hint and "step=4.ckpt" in problem.hint


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("statistics", [True, False], ids=["counted by statistics", "looked at by the guard"])
def test_a_mask_of_infinities_that_does_not_train_stops_nothing(tmp_path, statistics):
    module = Net()
    module.model.mask = nn.Parameter(torch.full((2, 2), -float("inf")), requires_grad=False)
    module.model.register_buffer("causal", torch.full((2, 2), -float("inf")))
    watch = [ParameterStatistics(every_n_steps=2, directory=tmp_path, max_overhead=None)] if statistics else []
    assert fit(module, *watch, NonFiniteGuard("stop", 2)).global_step == 8


@pytest.mark.filterwarnings("ignore:.*")
def test_weights_that_statistics_do_not_select_are_looked_at_as_well(tmp_path):
    module = Net()
    module.on_before_optimizer_step = lambda optimizer: spoil_update(module)
    watch = ParameterStatistics(every_n_steps=5, directory=tmp_path, select={"match": "fc.bias"}, max_overhead=None)
    with pytest.raises(BuilderError, match=r"fc\.weight: is not finite after its update at step 5; "):
        fit(module, watch, NonFiniteGuard("stop", 5))


@pytest.mark.filterwarnings("ignore:.*")
def test_a_gradient_that_statistics_count_is_acted_on_but_not_a_loss_scalers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(NonFiniteGuard, "on_before_optimizer_step", lambda *given: None)
    watch = ParameterStatistics(every_n_steps=5, directory=tmp_path, max_overhead=None)
    module = Net(nan_gradient)
    with pytest.raises(BuilderError, match=r"fc\.weight: is not finite after its update at step 5; "):
        fit(module, watch, NonFiniteGuard("stop", 5))
    trainer = types.SimpleNamespace(
        callbacks=[watch],
        precision_plugin=types.SimpleNamespace(scaler=None),
        global_step=5,
        checkpoint_callbacks=[],
        lightning_module=module,
    )
    watch.nonfinite = (5, {}, {"fc.weight": 8})
    with pytest.raises(BuilderError, match=r"fc\.weight: had a gradient that is not finite at step 5; .* \(8 values\)"):
        NonFiniteGuard("stop", 5).on_train_batch_end(trainer, module, None, None, 0)
    NonFiniteGuard("warn", 5).on_train_batch_end(trainer, module, None, None, 0)
    assert "fc.weight: had a gradient" in capsys.readouterr().err
    trainer.precision_plugin.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    NonFiniteGuard("stop", 5).on_train_batch_end(trainer, module, None, None, 0)


def test_the_sums_of_all_tensors_are_read_at_once(monkeypatch):
    reads = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(1) or tolist(self))
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: pytest.fail("read one by one"))
    assert guards.nonfinite_weights(Net()) == {}
    assert len(reads) == 1


def test_unknown_action_is_refused():
    with pytest.raises(BuilderError, match="unknown action 'stopp'") as caught:
        NonFiniteGuard("stopp")
    assert "did you mean 'stop'" in caught.value.problems[0].hint


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("fails", [False, True], ids=["at the end", "after a failure"])
def test_verdicts_are_written_and_said_however_the_fit_ends(tmp_path, fails, capsys):
    module = Net(nan_batch if fails else lambda module, batch: batch)
    module.model.unused = nn.Identity()
    module.model.unused.weight = nn.Parameter(torch.ones(2, 2))
    row = {"name": "unused.weight", "shape": [2, 2], "trainable": True, "tied_to": None, "held": []}
    (tmp_path / "parameters.json").write_text(json.dumps({"parameters": [row]}))
    statistics = ParameterStatistics(every_n_steps=1, directory=tmp_path, max_overhead=None)
    callbacks = NonFiniteGuard("stop"), statistics, VerdictsFile(tmp_path)
    if fails:
        with pytest.raises(BuilderError):
            fit(module, *callbacks)
    else:
        fit(module, *callbacks)
    (written,) = json.loads((tmp_path / "verdicts.json").read_text())
    assert (written["kind"], written["names"], written["step"]) == ("still", ["unused.weight"], 4 if fails else 8)
    assert "warning: Though trainable, the loss does not reach unused.weight.\n" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*")
def test_verdicts_that_cannot_be_put_in_their_place_leave_nothing(tmp_path, monkeypatch, capsys):
    def fail(part, file):
        raise OSError("disk full")

    fit(Net(), ParameterStatistics(every_n_steps=1, directory=tmp_path, max_overhead=None))
    monkeypatch.setattr("os.replace", fail)
    fit(Net(), VerdictsFile(tmp_path))
    assert capsys.readouterr().err == "the statistics could not be judged: OSError: disk full\n"
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.glob("verdicts*"))


@pytest.mark.filterwarnings("ignore:.*")
def test_statistics_that_cannot_be_read_end_no_run_and_it_is_said(tmp_path, capsys):
    class Spoil(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            (tmp_path / "stats" / "parameters" / "000009.parquet").write_bytes(b"x")

    watch = ParameterStatistics(every_n_steps=1, directory=tmp_path, max_overhead=None)
    assert fit(Net(), watch, Spoil(), VerdictsFile(tmp_path)).global_step == 8
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("the statistics could not be judged: ") and "000009.parquet: cannot be read: " in said


@pytest.mark.filterwarnings("ignore:.*")
def test_run_without_a_logged_step_is_not_judged(tmp_path):
    fit(Net(), ParameterStatistics(every_n_steps=50, directory=tmp_path), VerdictsFile(tmp_path))
    assert not (tmp_path / "verdicts.json").exists()


@pytest.mark.filterwarnings("ignore:.*")
def test_verdicts_of_an_earlier_fit_are_gone_when_a_fit_begins(tmp_path):
    seen = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append((tmp_path / "verdicts.json").exists())

    (tmp_path / "verdicts.json").write_text("[]\n")
    fit(Net(), VerdictsFile(tmp_path), Look(), steps=1)
    assert seen == [False], "a fit that is killed would be told by them"


@pytest.mark.filterwarnings("ignore:.*")
def test_a_fit_that_fails_before_it_begins_is_not_judged_by_an_earlier_one(tmp_path, capsys):
    class Fail(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            raise RuntimeError("no data")

    module = Net()
    module.model.unused = nn.Identity()
    module.model.unused.weight = nn.Parameter(torch.ones(2, 2))
    row = {"name": "unused.weight", "shape": [2, 2], "trainable": True, "tied_to": None}
    (tmp_path / "parameters.json").write_text(json.dumps({"parameters": [row]}))
    watch = ParameterStatistics(every_n_steps=1, directory=tmp_path, max_overhead=None)
    fit(module, watch, VerdictsFile(tmp_path))
    assert "warning: Though trainable" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="no data"):
        fit(Net(), watch, VerdictsFile(tmp_path), Fail())
    assert capsys.readouterr().out == ""


def test_running_statistics_that_a_batch_has_spoilt_are_lost_and_a_mask_is_not():
    module = Net()
    module.model.register_buffer("mask", torch.full((2,), -math.inf))
    module.model.norm = nn.BatchNorm1d(4)
    assert guards.nonfinite_learned(module) == {}
    module.model.norm(torch.full((2, 4), math.inf))
    assert guards.nonfinite_learned(module) == {"norm.running_mean": 4, "norm.running_var": 4}


def test_names_of_a_compiled_model_are_those_of_the_model():
    module = Net()
    module.model = torch.compile(module.model, backend="eager")
    module.model.fc.weight.data[0, 0] = math.nan
    assert guards.nonfinite_learned(module) == {"fc.weight": 1}


def test_a_checkpoint_that_is_not_finite_is_not_recommended(tmp_path):
    module = Net()
    module.model.register_buffer("mask", torch.full((2,), -math.inf))
    good, bad = tmp_path / "good.ckpt", tmp_path / "bad.ckpt"
    torch.save({"state_dict": module.state_dict()}, good)
    module.model.fc.weight.data[0, 0] = math.nan
    torch.save({"state_dict": module.state_dict()}, bad)
    callbacks = [types.SimpleNamespace(best_model_path=str(file)) for file in (good, bad, tmp_path / "none.ckpt")]
    trainer = types.SimpleNamespace(checkpoint_callbacks=callbacks, lightning_module=module)
    assert f"the last good checkpoint is {good}\n" in guards._remedy(trainer)
    trainer.checkpoint_callbacks = callbacks[1:]
    assert "checkpoint" not in guards._remedy(trainer)


@pytest.mark.filterwarnings("ignore:.*")
def test_a_step_that_a_loss_scaler_will_skip_stops_nothing():
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    module = Net(nan_gradient)
    guard = NonFiniteGuard("stop", 1)
    trainer = types.SimpleNamespace(
        precision_plugin=types.SimpleNamespace(scaler=scaler),
        global_step=0,
        world_size=1,
        checkpoint_callbacks=[],
        lightning_module=module,
    )
    module.model.fc.weight.grad = torch.full((2, 4), float("nan"))
    guard.on_before_optimizer_step(trainer, module, None)
    trainer.precision_plugin.scaler = None
    with pytest.raises(BuilderError, match="has a gradient that is not finite"):
        guard.on_before_optimizer_step(trainer, module, None)
