"""Freezing in runs: gradual unfreezing, resume at and amid an epoch, rows of an Embedding through a kill."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

import builder
from builder.lit_module import plan_run

QUIET = ["trainer=cpu", "model.args.hidden=16", "scheduler=none", "stats=none", "logger=none", "test=false"]
GRADUAL = ["+freeze.fc1={match:'fc1.*',until:{epoch:2}}", "+freeze.fc2={match:'fc2.*',until:{epoch:1}}"]
ROOT = Path(__file__).parents[2]


class Seen(pl.Callback):
    """Keeps what the weights were before each step, and which modules were in train mode."""

    kept: list = []  # noqa: RUF012 (of the last run; Hydra makes the callback, so a test has no other way to it)
    modes: list = []  # noqa: RUF012

    def on_fit_start(self, trainer, pl_module):
        Seen.kept, Seen.modes = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        Seen.kept.append({n: p.detach().clone() for n, p in pl_module.model.named_parameters()})
        Seen.modes.append({name for name, module in pl_module.model.named_modules() if module.training})


SEEN = "+callbacks.seen={_target_: test_freezing.Seen}"


def moves(layer):
    """At which steps, counted from 0 and after the first, a layer of the last run moved."""
    return [
        step
        for step, (before, after) in enumerate(pairwise(Seen.kept), 1)
        if not torch.equal(before[f"{layer}.weight"], after[f"{layer}.weight"])
    ]


def saves(folder, **when):
    """The override for a checkpoint of its own, written each time anew."""
    told = ", ".join(f"{key}: {value}" for key, value in when.items())
    return (
        "+callbacks.save={_target_: pytorch_lightning.callbacks.ModelCheckpoint, "
        f"dirpath: {folder}, filename: saved, enable_version_counter: false, {told}}}"
    )


def test_layers_thaw_epoch_by_epoch(command):
    ended = command(*QUIET, *GRADUAL, SEEN, "trainer.max_epochs=3", "optimizer.weight_decay=0.1")
    assert ended.code == 0
    steps = len(Seen.kept) // 3
    assert moves("head") == list(range(1, 3 * steps))
    assert moves("fc2") == list(range(steps, 3 * steps))
    assert moves("fc1") == list(range(2 * steps, 3 * steps))
    state = {row["name"]: row["held"] for row in ended.table["parameters"]}
    assert state["fc1.bias"] == ["until epoch 2 (freeze.fc1)"]
    assert ended.table["totals"]["frozen"] == 0
    assert "frozen until epoch 1" in ended.out


def test_layers_thaw_and_freeze_step_by_step(command):
    rules = ["+freeze.fc1={match:'fc1.*',until:{step:4}}", "+freeze.head={match:'head.*',from:{step:6},until:{step:9}}"]
    assert command(*QUIET, *rules, SEEN, "trainer.max_epochs=1").code == 0
    steps = len(Seen.kept)
    assert moves("fc1") == list(range(4, steps))
    assert moves("head") == [step for step in range(1, steps) if not 6 <= step < 9]


def test_step_schedule_counts_optimizer_steps_where_gradients_accumulate(command):
    rule = "+freeze.fc1={match:'fc1.*',until:{step:3}}"
    assert command(*QUIET, rule, SEEN, "trainer.max_epochs=1", "+trainer.accumulate_grad_batches=2").code == 0
    assert moves("fc1")[0] == 7, "the fourth step ends with the eighth batch"


def test_modules_stay_in_eval_mode_through_validation_and_leave_it_when_their_period_ends(command):
    rules = ["+freeze.a={match:'drop1',eval:true}", "+freeze.b={match:drop2,eval:true,until:{epoch:1}}"]
    ended = command(*QUIET, *rules, SEEN, "trainer.max_epochs=2", "+trainer.val_check_interval=0.5")
    steps = len(Seen.modes) // 2
    assert ["drop1" in modes for modes in Seen.modes] == [False] * (2 * steps)
    assert ["drop2" in modes for modes in Seen.modes] == [False] * steps + [True] * steps
    assert all({"", "fc1"} <= modes for modes in Seen.modes)
    assert "self.drop1.eval()" in (ended.directory / "model.py").read_text()


@pytest.mark.parametrize(("optimizer", "epochs"), [("sgd", 1), ("adam", 2), ("adamw", 1)])
def test_resumed_gradual_unfreezing_equals_a_straight_run(command, tmp_path, optimizer, epochs):
    late = "+freeze.late={match:'head.*',from:{epoch:2}}"
    rows = "+freeze.rows={match:fc2.weight,rows:[3,9]}"
    run = [*QUIET, *GRADUAL, late, rows, f"optimizer={optimizer}", "optimizer.weight_decay=0.1"]
    save = saves(tmp_path / "saved", every_n_epochs=1)
    first = command(*run, save, f"trainer.max_epochs={epochs}", into="first")
    saved = f"ckpt_path={tmp_path}/saved/saved.ckpt"
    resumed = command(*run, saved, saves(tmp_path / "last", every_n_epochs=1), "trainer.max_epochs=4", into="resumed")
    straight = command(*run, saves(tmp_path / "other", every_n_epochs=1), "trainer.max_epochs=4", into="straight")
    assert (first.code, resumed.code, straight.code) == (0, 0, 0)
    found, expected = (
        torch.load(tmp_path / name / "saved.ckpt", weights_only=True)["state_dict"] for name in ("last", "other")
    )
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


# ---- amid an epoch -------------------------------------------------------------------------------------------------


class Batches:
    """Batches of random tokens that can be taken up amid an epoch, as Lightning asks of a loader."""

    def __init__(self, count: int) -> None:
        self.count, self.next = count, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        while self.next < self.count:
            ids = torch.randint(0, 40, (16, 3), generator=torch.Generator().manual_seed(self.next))
            self.next += 1
            yield ids, ids[:, 0]
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def fine_tune(**rules):
    """A model whose first words are frozen, under AdamW with decay."""
    old = {"match": "emb.weight", "rows": [0, "=old"]}
    return {
        "model": {
            "args": {"old": 30, "vocab": 40, "d": 8},
            "inputs": {"ids": {"shape": ["batch", 3], "dtype": "int64", "range": [0, "=vocab"]}},
            "layers": {
                "emb": {"kind": "Embedding", "num_embeddings": "=vocab", "embedding_dim": "=d"},
                "norm": {"kind": "LayerNorm", "normalized_shape": "=d"},
                "drop": {"kind": "Dropout", "p": 0.1},
                "head": {"kind": "Linear", "in_features": "=d", "out_features": "=vocab"},
            },
            "forward": "head(drop(norm(emb(ids).mean(1))))",
            "freeze": {"old_words": old, **rules},
        },
        "task": {"batch": ["ids", "y"], "loss": "cross_entropy(model(ids), y)"},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.01, "weight_decay": 0.1},
        "seed": 3,
    }


def fit(config, steps, folder, every, ckpt=None):
    """Trains in one epoch, with a checkpoint every so many steps; gives the module and what its weights were."""
    pl.seed_everything(0, verbose=False)
    lit = builder.lightning_module(config)
    before = {name: value.clone() for name, value in lit.model.state_dict().items()}
    save = ModelCheckpoint(
        folder, "{step}", every_n_train_steps=every, save_top_k=-1, auto_insert_metric_name=False, monitor=None
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[save], enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(lit, Batches(steps), ckpt_path=ckpt)
    return lit, before


expected_of_lightning = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:.*isinstance.treespec, LeafSpec.*",
    "ignore:.*Checkpoint directory .* exists and is not empty.*",
    "ignore:.*GPU available but not used.*",
    "ignore:.*but have no `val_dataloader`.*",
    "ignore:.*The dirpath has changed from.*",
    "ignore:.*in eval mode at the start of training.*",
)


@expected_of_lightning
@pytest.mark.parametrize("saved_at", [5, 10, 15])
def test_step_schedules_go_on_amid_an_epoch_as_a_straight_run_does(tmp_path, saved_at):
    config = fine_tune(
        words={"match": "emb.weight", "until": {"step": 10}},
        norm={"match": "norm.*", "from": {"step": 8}, "until": {"step": 12}},
        few={"match": "head.weight", "rows": [0, 5], "from": {"step": 3}, "until": {"step": 15}},
        drop={"match": "drop", "eval": True, "until": {"step": 10}},
    )
    straight, before = fit(config, 20, tmp_path / "straight", every=5)
    resumed, _ = fit(config, 20, tmp_path / "resumed", every=5, ckpt=tmp_path / "straight" / f"{saved_at}.ckpt")
    assert straight.trainer.global_step == resumed.trainer.global_step == 20
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert torch.equal(straight.model.emb.weight[:30], before["emb.weight"][:30])
    assert not torch.equal(straight.model.emb.weight[30:], before["emb.weight"][30:])


@expected_of_lightning
def test_first_rows_stay_and_the_others_move_through_a_thousand_steps(tmp_path):
    lit, before = fit(fine_tune(), 1000, tmp_path, every=1000)
    weight = lit.model.emb.weight
    assert torch.equal(weight[:30], before["emb.weight"][:30])
    assert (weight[30:] != before["emb.weight"][30:]).any(1).all()


RUN = """
import sys
sys.path.insert(0, {here!r})
from test_freezing import fine_tune, fit
import torch
ckpt, folder, out = sys.argv[1:]
lit, _ = fit(fine_tune(), 1000, folder, every=50, ckpt=ckpt or None)
torch.save(lit.model.state_dict(), out)
"""


@pytest.mark.slow
def test_run_killed_in_the_middle_and_resumed_ends_with_the_same_bits(tmp_path):
    def command(ckpt, name):
        script = RUN.format(here=str(Path(__file__).parent))
        return [sys.executable, "-c", script, str(ckpt), str(tmp_path / name), str(tmp_path / f"{name}.pt")]

    subprocess.run(command("", "straight"), cwd=ROOT, check=True, capture_output=True)
    process = subprocess.Popen(command("", "killed"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wanted, end = tmp_path / "killed" / "450.ckpt", time.monotonic() + 120
    while not wanted.exists() and time.monotonic() < end:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "killed before it ended"
    assert not (tmp_path / "killed.pt").exists()
    whole = tmp_path / "killed" / "400.ckpt"  # the newest may have been cut off
    subprocess.run(command(whole, "resumed"), cwd=ROOT, check=True, capture_output=True)

    straight, resumed = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("straight", "resumed"))
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    start = builder.lightning_module(fine_tune()).model.state_dict()["emb.weight"]
    assert torch.equal(resumed["emb.weight"][:30], start[:30])
    assert (resumed["emb.weight"][30:] != start[30:]).any(1).all()


# ---- what a run refuses --------------------------------------------------------------------------------------------


def test_schedule_that_leaves_nothing_to_train_for_a_while_is_refused(command):
    ended = command(*QUIET, "+freeze.warm={match:'*',until:{epoch:1}}")
    assert (ended.code, ended.written) == (2, [])
    assert "everything is frozen at epoch 0, step 0" in ended.err
    assert "leave something to train at any time" in ended.err


def test_plan_of_a_schedule_spends_no_memory():
    proof = plan_run(fine_tune(words={"match": "emb.weight", "until": {"step": 10}})).proof
    assert all(parameter.is_meta for parameter in proof.meta.parameters())
    assert proof.freeze.scheduled == ("emb.weight",)
