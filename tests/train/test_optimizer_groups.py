"""Optimizer groups through whole runs: from the command line, into checkpoints, and on from them."""

import pytest
import pytorch_lightning as pl
import torch

SMALL = [
    "trainer=cpu",
    "model.args.hidden=16",
    "stats=none",
    "logger=none",
    "monitor=val/loss",
    "mode=min",
    "test=false",
]
NO_DECAY = "+optimizer.groups.no_decay={max_ndim: 1, weight_decay: 0}"
SLOW = "+optimizer.groups.slow={match: 'fc1.*', lr_scale: 0.5}"


class Stops(pl.Callback):
    """Ends a fit after some epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 == self.epochs


def saved_groups(ended):
    (state,) = torch.load(ended.directory / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
    return state["param_groups"]


def test_groups_from_the_command_line_are_those_that_the_optimizer_has(command):
    ended = command(*SMALL, NO_DECAY, "scheduler=none", "trainer.max_epochs=1")
    assert ended.code == 0
    assert [(group["param_names"], group["weight_decay"]) for group in saved_groups(ended)] == [
        (["fc1.weight", "fc2.weight", "head.weight"], 0.01),
        (["fc1.bias", "fc2.bias", "head.bias"], 0),
    ]


@pytest.mark.parametrize("scheduler", ["cosine", "one_cycle", "step"])
def test_resumed_run_with_groups_equals_a_straight_one_bit_for_bit(command, scheduler):
    overrides = [*SMALL, NO_DECAY, SLOW, f"scheduler={scheduler}", "trainer.max_epochs=4"]
    # The loss falls in every epoch, so that the last checkpoint is that of the last epoch.
    stop = "+callbacks.stop={_target_: test_optimizer_groups.Stops, epochs: 2}"
    straight = command(*overrides, into="straight")
    first = command(*overrides, stop, into="first")
    second = command(*overrides, f"ckpt_path={first.directory}/checkpoints/last.ckpt", into="second")
    assert (straight.code, first.code, second.code) == (0, 0, 0)
    assert len(saved_groups(second)) == 4
    ours, theirs, halfway = second.weights(), straight.weights(), first.weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not torch.equal(halfway["head.weight"], ours["head.weight"])
    rates = [group["lr"] for group in saved_groups(second)]
    assert rates == [group["lr"] for group in saved_groups(straight)]


def test_checkpoint_of_other_groups_is_refused_on_resume(command):
    first = command(*SMALL, NO_DECAY, "trainer.max_epochs=1", into="first")
    ended = command(*SMALL, SLOW, "trainer.max_epochs=1", f"ckpt_path={first.directory}/checkpoints/last.ckpt")
    assert (ended.code, ended.written) == (2, [])
    assert "its optimizer had 2 groups of other parameters: fc2.weight" in ended.err
    assert "use the optimizer.groups" in ended.err


def test_groups_of_a_checkpoint_are_of_no_matter_to_a_test(command):
    ended = command(*SMALL[:-1], NO_DECAY, "trainer.max_epochs=1")
    assert ended.code == 0 and "test/accuracy" in ended.result["metrics"]


def test_wrong_rule_ends_with_its_address_and_writes_nothing(command):
    ended = command(*SMALL, "+optimizer.groups.no_decay={max_ndim: 1, weight_deca: 0}")
    assert ended.code == 2
    assert "optimizer.groups.no_decay.weight_deca" in ended.err
    assert "neither a selector nor a setting of AdamW" in ended.err
    assert "did you mean 'weight_decay'?" in ended.err
    assert ended.written == []
