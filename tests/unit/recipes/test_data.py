import sys

import pytest
import torch
from omegaconf import OmegaConf

from builder.errors import BuilderError
from recipes.data.batches import Windows
from recipes.data.digits import Digits
from recipes.data.text import ALPHABET, Text, encode


def test_digits_are_scaled_floats_with_whole_classes():
    x, y = next(iter(Digits().train_dataloader()))
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((64, 64), torch.float32, (64,), torch.int64)
    assert (x.min(), x.max()) == (0.0, 1.0)


def test_digits_split_is_disjoint_complete_and_stratified():
    data = Digits()
    parts = [data.splits.train, data.splits.validation, data.splits.test]
    assert [len(part) for part in parts] == [1167, 270, 360]
    rows = {tuple(row) for part in parts for row in part.x.tolist()}
    assert len(rows) == 1797  # all images of the set differ
    assert all(torch.bincount(part.y, minlength=10).min() >= 0.08 * len(part) for part in parts)


def test_seed_changes_the_order_of_digits_but_not_the_split():
    first, second = Digits(seed=0), Digits(seed=1)
    assert all(torch.equal(a.x, b.x) for a, b in zip(first.splits, second.splits, strict=True))
    assert not torch.equal(next(iter(first.train_dataloader()))[1], next(iter(second.train_dataloader()))[1])


@pytest.mark.parametrize("data", [pytest.param(Digits, id="digits"), pytest.param(Text, id="text")])
def test_a_fresh_training_loader_repeats_itself_but_its_epochs_differ(data):
    module = data(seed=3)
    loader, again = module.train_dataloader(), module.train_dataloader()
    epochs = [torch.cat([y.flatten() for _, y in source]) for source in (loader, loader, again)]
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("data", [pytest.param(Digits, id="digits"), pytest.param(Text, id="text")])
def test_data_leaves_the_global_generator_alone(data):
    before = torch.get_rng_state()
    module = data()
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_digit_is_seen_once_an_epoch():
    seen = torch.cat([x for x, _ in Digits().train_dataloader()])
    assert len(seen) == 1167
    assert len(seen.unique(dim=0)) == 1167


def test_text_targets_are_the_inputs_one_character_on():
    data = Text(context=16, batch_size=4)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        x, y = next(iter(loader))
        assert (x.shape, x.dtype, y.dtype) == ((4, 16), torch.int64, torch.int64)
        assert torch.equal(x[:, 1:], y[:, :-1])


def test_text_draws_as_many_windows_as_asked_for():
    loader = Text(windows_per_epoch=100, batch_size=32).train_dataloader()
    assert [len(x) for x, _ in loader] == [32, 32, 32, 4]
    assert len(loader) == 4


def test_text_parts_are_contiguous_and_test_windows_do_not_overlap():
    data = Text()
    text = torch.cat(list(data.parts))
    assert [round(len(part) / len(text), 2) for part in data.parts] == [0.9, 0.05, 0.05]
    seen = torch.cat([x.flatten() for x, _ in data.test_dataloader()])
    assert torch.equal(seen, data.parts.test[: len(seen)])
    assert len(data.parts.test) - len(seen) <= 64


def test_windows_reach_the_last_character():
    windows = Windows(torch.arange(10), context=4, stride=1)
    assert len(windows) == 6
    assert windows[5][1].tolist() == [6, 7, 8, 9]
    x, y = windows.__getitems__([0, 5])
    assert (x.tolist(), y.tolist()) == ([[0, 1, 2, 3], [5, 6, 7, 8]], [[1, 2, 3, 4], [6, 7, 8, 9]])


def test_alphabet_has_96_characters_and_replaces_others():
    assert len(ALPHABET) == 96
    assert encode("\n ~é").tolist() == [0, 1, 95, ALPHABET.index("?")]


def test_references_are_what_a_model_has_to_beat():
    assert Digits().references == {"majority class accuracy": pytest.approx(0.1, abs=0.02)}
    assert Text().references == {"unigram entropy (nats)": pytest.approx(3.1, abs=0.2)}


@pytest.mark.parametrize(
    ("data", "wrong", "message"),
    [
        pytest.param(Digits, {"validation": 1.5}, "data.validation: 1.5 given, a share strictly", id="share above one"),
        pytest.param(Digits, {"test": True}, "data.test: True given", id="bool for a share"),
        pytest.param(Digits, {"test": "0.2"}, "data.test: '0.2' given", id="text for a share"),
        pytest.param(Digits, {"validation": float("nan")}, "data.validation: nan given", id="NaN for a share"),
        pytest.param(Digits, {"validation": 0.5, "test": 0.5}, "leave nothing to train on", id="nothing to train on"),
        pytest.param(
            Digits, {"batch_size": 0}, "data.batch_size: 0 given, a whole number of at least 1", id="no batch"
        ),
        pytest.param(Digits, {"seed": -1}, "data.seed: -1 given, a whole number from 0 to", id="negative seed"),
        pytest.param(Digits, {"split_seed": 2**32}, "data.split_seed", id="seed too large"),
        pytest.param(Text, {"context": 0}, "data.context: 0 given", id="no context"),
        pytest.param(Text, {"context": True}, "data.context: True given", id="bool for a context"),
        pytest.param(Text, {"context": 10**6}, "holds windows of at most", id="context longer than the text"),
        pytest.param(Text, {"windows_per_epoch": 1.0}, "data.windows_per_epoch: 1.0 given", id="float for a count"),
    ],
)
@pytest.mark.parametrize("config", [pytest.param(dict, id="dict"), pytest.param(OmegaConf.create, id="DictConfig")])
def test_wrong_argument_is_refused_by_its_address(data, wrong, message, config):
    with pytest.raises(BuilderError, match=message):
        data(**config(wrong))


def test_all_wrong_arguments_are_told_at_once():
    with pytest.raises(BuilderError, match="3 problems"):
        Digits(batch_size=0, seed=-1, validation=2)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(BuilderError, match=r"pip install 'builder\[recipes\]'"):
        Digits()
