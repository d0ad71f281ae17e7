"""What hooks see of layers, and when they are there."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.checkpoint import checkpoint

from builder.stats.outputs import OutputWatch
from builder.stats.record import Recorder


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.conv = nn.Sequential(nn.Conv1d(1, 2, 1), nn.Tanh())
        self.gate = nn.Sigmoid()
        self.rnn = nn.LSTM(6, 3, batch_first=True)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.block(x)
        self.conv(x.unsqueeze(1))
        self.gate(20 * x)
        return self.rnn(x.unsqueeze(1))[0]


def seen(model, batches, patterns="*"):
    """Rows by layer, of a step of some forward passes."""
    watch = OutputWatch(model, patterns)
    watch.attach()
    for batch in batches:
        model(batch)
    watch.detach()
    recorder = Recorder(dict(model.named_parameters()), outputs=watch)
    recorder.before_step()
    columns = recorder.after_step(1, epoch=0).outputs
    names = [name for name in columns if name != "layer"]
    return {
        layer: dict(zip(names, row, strict=True))
        for layer, *row in zip(columns["layer"], *(columns[name] for name in names), strict=True)
    }


def batch(seed=0, size=5):
    return torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))


def test_every_layer_that_ran_has_a_row_in_the_order_in_which_they_ended():
    rows = seen(Model(), [batch()])
    assert list(rows) == ["block.0", "block.1", "block", "conv.0", "conv.1", "conv", "gate", "rnn"]
    assert [row["kind"] for row in rows.values()] == [
        "Linear", "ReLU", "Sequential", "Conv1d", "Tanh", "Sequential", "Sigmoid", "LSTM",
    ]  # fmt: skip


def test_moments_are_those_of_the_output():
    model = Model()
    rows = seen(model, [batch()])
    output = model.block[0](batch()).detach().double()
    assert rows["block.0"]["mean"] == pytest.approx(output.mean().item())
    assert rows["block.0"]["std"] == pytest.approx(output.std(correction=0).item())
    assert rows["block.0"]["rms"] == pytest.approx(output.square().mean().sqrt().item())
    assert rows["rnn"]["mean"] == pytest.approx(model(batch()).double().mean().item())


def test_batches_of_one_step_are_measured_together():
    model = Model()
    rows = seen(model, [batch(0), batch(1, size=3)])
    both = torch.cat([model.block[0](batch(0)), model.block[0](batch(1, size=3))]).detach().double()
    assert rows["block.0"]["mean"] == pytest.approx(both.mean().item())
    assert rows["block.0"]["std"] == pytest.approx(both.std(correction=0).item())


def test_a_unit_is_dead_if_no_batch_of_the_step_moves_it():
    model = Model()
    with torch.no_grad():
        model.block[0].weight.zero_()
        model.block[0].bias.copy_(torch.tensor([-1.0, -1, 1, 1, 0, 0]))
        model.block[0].weight[0, 0] = 10
    low, high = torch.full((16, 4), -1.0), torch.full((16, 4), 1.0)
    assert seen(model, [low])["block.1"]["dead"] == pytest.approx(4 / 6)
    assert seen(model, [low, high])["block.1"]["dead"] == pytest.approx(3 / 6)
    assert seen(model, [low])["block.0"]["dead"] is None, "a Linear has no dead units"


def test_units_of_pictures_are_their_channels():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([-1.0, 1, 2]))
    assert seen(model, [torch.ones(2, 1, 4, 4)])["1"]["dead"] == pytest.approx(1 / 3)


def test_saturation_is_the_share_of_values_near_the_ends():
    model = Model()
    rows = seen(model, [batch()])
    x = 20 * model.block(batch())
    gate = torch.sigmoid(x)
    assert rows["gate"]["saturated"] == pytest.approx(((gate > 0.97) | (gate < 0.03)).double().mean().item())
    squashed = model.conv(model.block(batch()).unsqueeze(1))
    assert rows["conv.1"]["saturated"] == pytest.approx((squashed.abs() > 0.97).double().mean().item())
    assert rows["block.1"]["saturated"] is None


def test_non_finite_outputs_are_counted():
    x = batch()
    x[2, 1] = math.nan
    rows = seen(Model(), [x])
    assert rows["block.0"]["nonfinite"] == 6 and math.isnan(rows["block.0"]["mean"])


def test_a_layer_that_is_called_twice_is_measured_over_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.act(x) + self.act(-x) * self.scale

    rows = seen(Twice(), [torch.ones(8, 4), torch.ones(8, 4)])
    assert rows["act"]["mean"] == 0.5
    assert rows["act"]["dead"] == 0.5, "all units of one call"


def test_only_layers_that_the_globs_choose_are_watched():
    assert list(seen(Model(), [batch()], ("block.*", "gate"))) == ["block.0", "block.1", "gate"]
    assert seen(Model(), [batch()], "nothing") == {}


def test_hooks_are_there_only_while_attached_and_change_no_output():
    model = Model()
    watch = OutputWatch(model, "*")
    before = model(batch())
    watch.attach()
    assert watch.is_attached and torch.equal(model(batch()), before)
    watch.detach()
    assert not watch.is_attached
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert len(watch.take()) == 8 and watch.take() == {}
    model(batch())
    assert watch.take() == {}


def test_a_pause_sees_nothing():
    model = Model()
    watch = OutputWatch(model, "*")
    watch.attach()
    watch.paused = True
    model(batch())
    watch.paused = False
    assert watch.take() == {}


def test_measures_are_not_taken_in_the_low_precision_of_autocast():
    model = nn.Sequential(nn.Linear(4, 30_000))
    watch = OutputWatch(model, "*")
    watch.attach()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch())
    assert output.dtype == torch.bfloat16
    recorder = Recorder(dict(model.named_parameters()), outputs=watch)
    recorder.before_step()
    found = recorder.after_step(1, 0).outputs["rms"][0]
    assert found == pytest.approx(output.detach().double().square().mean().sqrt().item(), rel=1e-5)


# ---- activations that are called as functions ------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.out = nn.Linear(4, 4)

    def forward(self, x):
        return self.out(nn.functional.relu(self.fc(x)))


class Functional(nn.Module):
    """An activation called before, between and after layers of which some are activations themselves."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.act = nn.ReLU()

    def forward(self, x):
        x = torch.tanh(x)
        for block in self.blocks:
            x = block(x)
        return self.act(x).relu()


def test_functions_stand_where_they_are_called():
    rows = seen(Functional(), [batch()])
    assert list(rows) == [
        "tanh()",
        "blocks.0.fc", "blocks.0.relu()", "blocks.0.out", "blocks.0",
        "blocks.1.fc", "blocks.1.relu()", "blocks.1.out", "blocks.1",
        "act", "relu()",
    ]  # fmt: skip
    assert [rows[name]["kind"] for name in ("act", "relu()", "tanh()")] == ["ReLU", "relu", "tanh"]


def test_functions_are_measured_like_layers():
    model = Functional()
    rows = seen(model, [batch(size=20)])
    inner = model.blocks[0].fc(torch.tanh(batch(size=20))).relu().detach()
    assert rows["blocks.0.relu()"]["dead"] == pytest.approx((inner == 0).all(0).double().mean().item())
    assert rows["blocks.0.relu()"]["rms"] == pytest.approx(inner.double().square().mean().sqrt().item())
    assert rows["tanh()"]["saturated"] == pytest.approx(
        (torch.tanh(batch(size=20)).abs() > 0.97).double().mean().item()
    )


F = nn.functional
CALLS = {
    "torch.relu": torch.relu, "F.relu": F.relu, "in place": lambda x: F.relu(x, inplace=True), "relu_": torch.relu_,
    "method": lambda x: x.relu(), "F.relu6": F.relu6, "F.threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "F.hardswish": F.hardswish, "F.softshrink": F.softshrink, "F.tanh": F.tanh, "tanh_": lambda x: x.tanh_(),
    "F.softsign": F.softsign, "F.sigmoid": F.sigmoid, "torch.sigmoid": torch.sigmoid,
    "F.hardsigmoid": F.hardsigmoid, "F.hardtanh": F.hardtanh, "hardtanh_": lambda x: F.hardtanh_(x, -2.0),
    "F.hardtanh from 0": lambda x: F.hardtanh(x, 0.0, 6.0, inplace=True),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_is_seen_once_whatever_it_is_written_as(call):
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return call(self.fc(x))

    model = Calls()
    watch = OutputWatch(model, "*")
    watch.attach()
    output = model(batch())
    watch.detach()
    assert torch.equal(output, model(batch()))
    _, (name, layer) = watch.take().items()
    assert name == f"{layer.kind}()" and len(layer.sums) == 1
    assert bool(layer.units) != bool(layer.beyond)


def test_other_functions_and_the_globs_leave_no_row():
    class Smooth(Functional):
        def forward(self, x):
            return F.gelu(self.act(x))

    assert list(seen(Smooth(), [batch()])) == ["act"]
    assert list(seen(Functional(), [batch()], "*.relu()")) == ["blocks.0.relu()", "blocks.1.relu()"]


@pytest.mark.parametrize("failing", [lambda x: x.view(7, 7), lambda x: x[:, :1]], ids=["the model", "a layer"])
def test_after_a_forward_that_fails_no_call_is_watched(failing):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Block()

        def forward(self, x, change):
            return self.inner(change(self.inner(x)))

    model = Fails()
    watch = OutputWatch(model, "*")
    watch.attach()
    with pytest.raises(RuntimeError):
        model(batch(), failing)
    assert len(watch.take()["inner.relu()"].sums) == 1
    torch.relu(batch())
    assert watch.take() == {}
    model(batch(), lambda x: x)
    assert list(watch.take()) == ["inner.fc", "inner.relu()", "inner.out", "inner"]


def test_after_ctrl_c_in_a_forward_nothing_is_left_once_the_hooks_are_gone():
    class Stops(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Block()

        def forward(self, x, stop):
            x = self.inner(x)
            if stop:
                raise KeyboardInterrupt
            return x

    model = Stops()
    watch = OutputWatch(model, "*")
    watch.attach()
    with pytest.raises(KeyboardInterrupt):
        model(batch(), stop=True)
    watch.detach()
    watch.take()
    torch.relu(batch())
    assert watch.take() == {}
    watch.attach()
    model(batch(), stop=False)
    assert list(watch.take()) == ["inner.fc", "inner.relu()", "inner.out", "inner"]


def test_a_model_that_calls_itself_is_watched_once():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, depth=2):
            x = self.fc(x).relu()
            return self(x, depth - 1) if depth else x

    model = Again()
    watch = OutputWatch(model, "*")
    watch.attach()
    model(batch())
    torch.relu(batch())
    assert {name: len(layer.sums) for name, layer in watch.take().items()} == {"fc": 3, "relu()": 3}


def test_batches_of_other_lengths_within_a_step_are_no_fault():
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0), nn.ReLU())
    rows = seen(model, [batch(size=5), batch(size=3)])
    assert rows["2"]["rms"] > 0 and rows["2"]["dead"] is None, "each of 8 units was seen once at the most"


@pytest.mark.parametrize(
    "layer",
    [
        nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 1),
        nn.MultiheadAttention(8, 2, batch_first=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_attention_in_eval_mode_which_a_hook_would_change_is_left_alone(layer):
    model = nn.ModuleDict({"layer": layer.eval(), "head": nn.Linear(8, 2)})
    watch = OutputWatch(model, "*")
    watch.attach()
    assert not watch.is_attached
    layer.train()
    watch.attach()
    assert watch.is_attached


class Transforms(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.fc, self.call = nn.Linear(4, 4), call

    def forward(self, x):
        return self.call(self, x)


STRANGE = {
    "vmap": lambda model, x: torch.vmap(lambda row: model.fc(row).relu())(x),
    "grad": lambda model, x: torch.func.grad(lambda row: model.fc(row).relu().sum())(x),
    "sparse": lambda model, x: torch.relu(model.fc(x).detach().to_sparse()).to_dense(),
}


@pytest.mark.parametrize("call", STRANGE.values(), ids=STRANGE)
def test_tensors_that_cannot_be_read_are_left_out(call):
    model = Transforms(call)
    expected = model(batch())
    watch = OutputWatch(model, "*")
    watch.attach()
    assert torch.equal(model(batch()), expected)
    assert "relu()" not in watch.take()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_scripted_layer_takes_no_hooks():
    model = nn.Sequential(torch.jit.script(nn.Linear(4, 4)), nn.ReLU())
    assert list(seen(model, [batch()])) == ["1"]


class Gives(nn.Module):
    """A layer that gives out what a function makes of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda x: (x.argmax(-1), x), id="whole numbers first"),
        pytest.param(lambda x: (None, x), id="None first"),
        pytest.param(lambda x: {"loss": None, "hidden": x, "more": -x}, id="mapping"),
        pytest.param(lambda x: OrderedDict(hidden=x, loss=x.mean()), id="ordered mapping"),
        pytest.param(lambda x: [x, 0 * x], id="list"),
    ],
)
def test_of_an_output_in_parts_the_first_with_floats_is_measured(wrap):
    rows = seen(nn.Sequential(nn.Linear(4, 3), Gives(wrap)), [batch()])
    assert rows["1"]["rms"] == rows["0"]["rms"]


@pytest.mark.parametrize("wrap", [lambda x: (x.argmax(-1), None), lambda x: {}, lambda x: None, lambda x: x[:0]])
def test_outputs_without_floats_are_left_out(wrap):
    assert list(seen(nn.Sequential(nn.Linear(4, 3), Gives(wrap)), [batch()])) == ["0"]


# ---- what is judged --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "judged"),
    [
        pytest.param([(1, 40, 4)], False, id="one sample of 40 values"),
        pytest.param([(15, 4)], False, id="15 values"),
        pytest.param([(16, 4)], True, id="16 values"),
        pytest.param([(2, 8, 4)], True, id="2 samples of 8 values"),
        pytest.param([(1, 8, 4), (1, 8, 4)], True, id="two batches of one sample"),
        pytest.param([(4,)] * 20, True, id="20 samples, one by one"),
    ],
)
def test_units_are_dead_only_where_enough_values_stand_behind_each(sizes, judged):
    rows = seen(nn.Sequential(nn.Linear(4, 6), nn.ReLU()), [torch.ones(size) for size in sizes])
    assert (rows["1"]["dead"] is not None) == judged


def changed(layer, unit=0):
    """The layer, with one unit out of reach."""
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(1.0)[unit] = -1.0
    return layer


SWAP = Gives(lambda x: x.movedim(1, -1))
FIRST_BELOW_0 = Gives(lambda x: torch.cat([-x[:, :1], x], 1))


@pytest.mark.parametrize(
    ("layers", "shape", "dead"),
    [
        pytest.param([changed(nn.Conv1d(3, 4, 1)), nn.ReLU()], (4, 3, 7), 1 / 4, id="Conv1d"),
        pytest.param([changed(nn.Conv3d(3, 4, 1)), nn.ReLU()], (4, 3, 2, 2, 2), 1 / 4, id="Conv3d"),
        pytest.param([nn.Conv1d(3, 4, 1), changed(nn.BatchNorm1d(4)), nn.ReLU()], (4, 3, 7), 1 / 4, id="BatchNorm1d"),
        pytest.param([nn.Conv1d(3, 4, 1), changed(nn.GroupNorm(2, 4)), nn.ReLU()], (4, 3, 7), 1 / 4, id="GroupNorm"),
        pytest.param([changed(nn.Linear(3, 5)), nn.ReLU()], (4, 7, 3), 1 / 5, id="Linear over time"),
        pytest.param([changed(nn.Linear(3, 5)), nn.ReLU()], (4, 7, 2, 3), 1 / 5, id="Linear over a picture"),
        pytest.param([nn.Conv2d(3, 5, 1), SWAP, changed(nn.LayerNorm(5)), nn.ReLU()], (4, 3, 2, 2), 1 / 5, id="norm"),
        pytest.param([changed(nn.Conv2d(3, 5, 1)), SWAP, nn.ReLU()], (4, 3, 2, 2), 1 / 5, id="axes changed after it"),
        pytest.param([changed(nn.Conv2d(3, 5, 1)), nn.Flatten(), nn.ReLU()], (16, 3, 2, 2), 1 / 5, id="flat"),
        pytest.param([changed(nn.Conv1d(3, 6, 1)), nn.GLU(1), nn.ReLU()], (4, 3, 7), 1 / 3, id="half of the channels"),
        pytest.param([FIRST_BELOW_0, nn.ReLU(), nn.Linear(5, 5)], (4, 3, 5, 5), 1 / 4, id="a picture, not known"),
    ],
)  # fmt: skip
def test_units_are_those_of_the_layer_before(layers, shape, dead):
    rows = seen(nn.Sequential(*layers), [torch.ones(shape)] * 2)
    assert [row["dead"] for row in rows.values() if row["kind"] == "ReLU"] == pytest.approx([dead])


@pytest.mark.parametrize(
    ("layer", "measure", "share"),
    [
        pytest.param(nn.Hardtanh(), "saturated", 2 / 5, id="Hardtanh"),
        pytest.param(nn.Hardtanh(-0.5, 0.7), "saturated", 4 / 5, id="other bounds"),
        pytest.param(nn.Hardtanh(0.0, 0.7), "dead", 0.0, id="from 0"),
        pytest.param(nn.ReLU6(), "dead", 0.0, id="ReLU6"),
        pytest.param(Gives(F.hardtanh), "saturated", 2 / 5, id="function"),
        pytest.param(Gives(lambda x: F.hardtanh(x, max_val=0.1)), "saturated", 3 / 5, id="by name"),
        pytest.param(Gives(lambda x: F.hardtanh(x, 0, 6)), "dead", 0.0, id="ReLU6 as a function"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hardtanh_is_saturated_at_its_bounds(layer, measure, share, dtype):
    x = torch.tensor([-3.0, -0.6, 0.0, 0.7, 4.0], dtype=dtype).expand(16, 5).T.repeat(4, 1)
    rows = seen(nn.Sequential(layer, nn.Linear(16, 2, dtype=dtype)), [x])
    row = rows.get("0.hardtanh()", rows["0"])
    assert row[measure] == pytest.approx(share)
    assert row[{"dead": "saturated", "saturated": "dead"}[measure]] is None


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), id="last layer"),
        pytest.param(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Gives(lambda x: x[:, 0])), id="a view of it"),
        pytest.param(nn.Sequential(nn.Linear(4, 4), nn.Hardtanh(), Gives(lambda x: {"y": x})), id="in a mapping"),
        pytest.param(nn.Sequential(nn.Linear(4, 4), Gives(lambda x: (x, torch.tanh(x)))), id="function, second part"),
    ],
)
def test_the_output_of_the_model_is_not_judged_as_saturated(model):
    rows = seen(model, [100 * batch()])
    assert len(rows) > 1 and all(row["saturated"] is None for row in rows.values())


def test_what_the_model_does_not_return_is_judged_though_its_memory_is_free():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.fc = nn.Tanh(), nn.Linear(4, 4)

        def forward(self, x):
            self.act(x)  # the next tensor of this size takes its memory
            return x + 1

    with torch.no_grad():
        assert seen(Twice(), [100 * batch(size=300_000)])["act"]["saturated"] > 0.5


# ---- activation checkpoints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["a part", "the model"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_what_backward_computes_again_is_not_measured_again(reentrant, of):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.inner = nn.Linear(4, 4), nn.Sequential(Block(), nn.ReLU(), Block())

        def forward(self, x, save):
            x = self.fc(x)
            return checkpoint(self.inner, x, use_reentrant=reentrant) if save else self.inner(x)

    model, found = Checkpointed(), []
    x = batch(size=20).requires_grad_()
    x.data[0, 0] = math.nan
    for save in (False, True):
        watch = OutputWatch(model, "*")
        watch.attach()
        if save and of == "the model":
            checkpoint(model, x, False, use_reentrant=reentrant).sum().backward()
        else:
            model(x, save).sum().backward()
        watch.detach()
        recorder = Recorder(dict(model.named_parameters()), outputs=watch)
        recorder.before_step()
        found.append(recorder.after_step(1, 0).outputs)
    assert repr(found[0]) == repr(found[1]), "of which repr compares NaN as well"
    assert "inner.0.relu()" in found[0]["layer"] and found[0]["nonfinite"][0] == 4


class Nasty(torch.nn.Module):
    """Gives out what torch lets a layer give out, though numpy cannot read it."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)
        self.negative = torch.nn.Identity()
        self.other = torch.nn.Identity()

    def forward(self, x):
        x = torch.nn.functional.hardtanh_(input=self.fc(x), min_val=-0.1, max_val=0.1)
        return self.negative(torch.complex(x.double(), x.double()).conj().imag), self.other(Marked(x))


class Marked(torch.Tensor):
    """A tensor of a class of its own."""

    @staticmethod
    def __new__(cls, x):
        return torch.Tensor._make_subclass(cls, x)


def test_outputs_that_numpy_cannot_read_stop_nothing():
    model, x = Nasty(), batch()
    rows = seen(model, [x])
    assert list(rows) == ["fc", "hardtanh_()" if "hardtanh_()" in rows else "hardtanh()", "negative"]
    assert rows["negative"]["mean"] == pytest.approx(-model(x)[1].double().mean().item())


def test_a_hardtanh_of_a_class_of_its_own_is_measured_once():
    class Clipped(torch.nn.Hardtanh):
        pass

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), Clipped(0, 1), torch.nn.Linear(4, 2))
    assert list(seen(model, [batch()])) == ["0", "1", "2"]


@pytest.mark.parametrize("parametrization", [weight_norm, spectral_norm, orthogonal])
def test_what_computes_a_weight_is_no_layer(parametrization):
    model = torch.nn.Sequential(parametrization(torch.nn.Linear(4, 4)), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    rows = seen(model, [batch()])
    assert {path: row["kind"] for path, row in rows.items()} == {"0": "Linear", "1": "ReLU", "2": "Linear"}


def test_an_activation_that_computes_a_weight_is_none_of_the_layer():
    class Squashed(torch.nn.Module):
        def forward(self, weight):
            return weight.tanh()

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    register_parametrization(model[0], "weight", Squashed())
    assert list(seen(model, [batch()])) == ["0", "1"]
