"""Initial values: drawn again where they can be, else copied."""

import pytest
import torch
from torch import nn

import builder
from builder.stats import distance as module_under_test
from builder.stats.distance import Start, drawn_by
from builder.stats.measure import start_measures
from builder.stats.passes import START

MODEL = {
    "args": {"d": 300},
    "inputs": {"x": {"shape": ["batch", "=d"]}},
    "layers": {
        "fc": {"kind": "Linear", "in_features": "=d", "out_features": "=d"},
        "tall": {"kind": "Linear", "in_features": "=d", "out_features": 1000, "init": {"weight": "orthogonal"}},
        "gain": {"kind": "Parameter", "shape": [1], "init": "normal"},
    },
    "forward": "tall(fc(x)) * gain",
}


@pytest.fixture
def model():
    return builder.build(MODEL, seed=5)


def start_of(model, **options):
    return Start(dict(model.named_parameters()), drawn_by(model), **options)


def distances(model, start):
    return {name: start_measures(start.sums([name]))[0, 0].item() for name, _ in model.named_parameters()}


def test_initial_values_of_a_built_model_are_drawn_again_and_not_kept(model):
    start = start_of(model)
    assert start.drawn == {name for name, _ in model.named_parameters()}
    assert start.words() == ""
    assert set(distances(model, start).values()) == {0.0}


@pytest.mark.parametrize("block", [2**24, 50_000], ids=["at once", "in blocks"])
def test_distance_is_from_the_initial_values(model, block, monkeypatch):
    monkeypatch.setattr(module_under_test, "_BLOCK", block)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    start = start_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    for name, parameter in model.named_parameters():
        now, then = parameter.detach().double().flatten(), before[name].double().flatten()
        found, cosine = start_measures(start.sums([name]))[0].tolist()
        assert found == pytest.approx((now - then).norm().item(), rel=1e-5), name
        assert cosine == pytest.approx(torch.nn.functional.cosine_similarity(now, then, dim=0).item(), rel=1e-5)


def test_weights_that_were_loaded_are_copied_and_it_is_said(model):
    with torch.no_grad():
        model.fc.weight.copy_(torch.ones(300, 300))
    start = start_of(model)
    assert start.drawn == {"fc.bias", "tall.weight", "tall.bias", "gain"}
    assert "1 parameters cannot be drawn again" in start.words() and "0.4 MB" in start.words()
    with torch.no_grad():
        model.fc.weight += 1
    assert distances(model, start)["fc.weight"] == pytest.approx(300.0)


@pytest.mark.parametrize("block", [2**24, 50_000], ids=["at once", "in blocks"])
def test_one_value_set_in_the_middle_of_a_parameter_is_noticed(model, block, monkeypatch):
    monkeypatch.setattr(module_under_test, "_BLOCK", block)
    with torch.no_grad():
        model.tall.weight[500, 150] += 1e-6
    start = start_of(model)
    assert start.drawn == {"fc.weight", "fc.bias", "tall.bias", "gain"}
    assert distances(model, start)["tall.weight"] == 0.0


def test_a_value_that_is_no_number_is_not_what_was_drawn(model):
    with torch.no_grad():
        model.tall.weight[500, 150] = float("nan")
    assert "tall.weight" not in start_of(model).drawn


@pytest.mark.parametrize("outer", [1000, 1200], ids=["narrower", "of other rows too"])
def test_a_layer_that_was_put_in_place_of_another_is_copied(model, outer):
    model.tall = nn.Linear(200, outer)
    start = start_of(model)
    assert start.drawn == {"fc.weight", "fc.bias", "gain"} and start.missing == set()
    assert set(distances(model, start).values()) == {0.0}


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: builder.build(MODEL, rng="torch"), id="drawn in order"),
        pytest.param(lambda: nn.Sequential(nn.Linear(3, 4)), id="not built by builder"),
    ],
)
def test_a_model_that_cannot_be_drawn_again_is_copied(build):
    model = build()
    start = start_of(model)
    assert start.drawn == set() and start.words()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 2
    for name, parameter in model.named_parameters():
        assert distances(model, start)[name] == pytest.approx(2 * parameter.numel() ** 0.5, rel=1e-6)


def test_a_resumed_run_draws_what_the_first_drew_and_has_no_distance_for_the_rest(model):
    with torch.no_grad():
        model.fc.weight += 1.0
    start = start_of(model, resumed=["fc.weight", "tall.weight"])
    found = distances(model, start)
    assert found["fc.weight"] == pytest.approx(300.0, rel=1e-6) and found["tall.weight"] == 0.0
    assert start.missing == {"fc.bias", "tall.bias", "gain"}
    assert start.sums(["gain"])[0, 0] == 0, "nothing was counted"
    assert "none in a resumed run for 3 parameters" in start.words()


@pytest.mark.parametrize("build", [lambda: builder.build(MODEL, rng="torch"), lambda: nn.Linear(3, 4)])
def test_of_what_may_have_been_drawn_before_a_checkpoint_nothing_counts_as_drawn_that_cannot_be(build):
    model = build()
    start = start_of(model, resumed=[name for name, _ in model.named_parameters()])
    assert start.drawn == set() and start.missing == {name for name, _ in model.named_parameters()}
    assert start.words().startswith("distance from the start: none in a resumed run for ")


def test_what_can_be_drawn_counts_as_drawn_before_a_checkpoint_though_it_has_moved(model):
    model.tall = nn.Linear(200, 1000)
    with torch.no_grad():
        model.fc.weight += 1.0
    start = start_of(model, resumed=[name for name, _ in model.named_parameters()])
    assert start.missing == {"tall.weight"} and len(start.drawn) == 4
    assert distances(model, start)["fc.weight"] == pytest.approx(300.0, rel=1e-6)


def test_a_start_is_of_the_same_parameters_under_the_same_names(model):
    start, own = start_of(model), dict(model.named_parameters())
    assert start.is_of(own)
    assert not start.is_of(own | {"gain": nn.Parameter(own["gain"].detach())})
    assert not start.is_of({name: own[name] for name in ("fc.weight", "gain")})


def test_what_can_no_longer_be_drawn_ends_no_training(model):
    gone = []

    def draw(parts):
        if gone and any(name == "tall.weight" for name, _ in parts):
            raise FileNotFoundError("weights.safetensors")
        return drawn_by(model)(parts)

    start = Start(dict(model.named_parameters()), draw)
    with torch.no_grad():
        model.fc.weight += 1.0
    gone.append(True)
    sums = start.sums(["fc.bias", "tall.weight", "fc.weight"])
    assert start.missing == {"tall.weight"}
    assert sums[:, 0].tolist() == [300, 0, 90_000]
    assert start_measures(sums)[:, 0].tolist() == pytest.approx([0, 0, 300], rel=1e-6), "the others are still measured"


def test_parameters_keep_their_order_however_they_are_measured(model):
    with torch.no_grad():
        model.fc.weight += 1.0
    start = start_of(model)
    names = [name for name, _ in model.named_parameters()][::-1]
    assert start.sums(names)[:, 0].tolist() == [model.get_parameter(name).numel() for name in names]
    assert start.sums([]).shape == (0, len(START))


def test_members_of_a_stacked_model_are_measured_each_from_its_own_start():
    weights = {"a": torch.ones(3, 4), "b": torch.zeros(3, 2, 2)}
    start = Start(weights, drawn_by(nn.Linear(1, 1)), stacked=True)
    weights["a"][1] += 2
    distance = start_measures(start.sums(weights))[:, 0]
    assert distance.tolist() == [0, 4, 0, 0, 0, 0]
    resumed = Start(weights, drawn_by(nn.Linear(1, 1)), stacked=True, resumed=[])
    assert resumed.sums(weights)[:, 0].tolist() == [0] * 6, "nothing was counted"


def test_drawing_leaves_the_global_generator_alone(model):
    state = torch.get_rng_state()
    distances(model, start_of(model))
    assert torch.equal(torch.get_rng_state(), state)
