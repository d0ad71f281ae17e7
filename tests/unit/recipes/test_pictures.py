import sys
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from builder.errors import BuilderError
from recipes.pictures import Expected, InitialHistograms, describe, describe_memory, uninitialised

NORMAL = {"title": "drawn", "distribution": "normal", "std": 1.0}


def fit(callback, ckpt_path=None, is_global_zero=True):
    trainer = SimpleNamespace(ckpt_path=ckpt_path, is_global_zero=is_global_zero)
    callback.on_fit_start(trainer, SimpleNamespace(model=nn.Linear(4, 5)))


@pytest.mark.parametrize("config", [pytest.param(dict, id="dict"), pytest.param(OmegaConf.create, id="DictConfig")])
def test_fit_leaves_one_picture_and_nothing_else(tmp_path, config):
    fit(InitialHistograms(tmp_path / "run", config({"weight": NORMAL, "bias": NORMAL})))
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["initial_values.png"]
    assert (tmp_path / "run" / "initial_values.png").read_bytes().startswith(b"\x89PNG")


def test_resumed_fit_draws_nothing(tmp_path):
    fit(InitialHistograms(tmp_path, {"weight": NORMAL}), ckpt_path="last.ckpt")
    assert not list(tmp_path.iterdir())


def test_only_the_first_process_draws(tmp_path):
    fit(InitialHistograms(tmp_path, {"weight": NORMAL}), is_global_zero=False)
    assert not list(tmp_path.iterdir())


def test_drawing_moves_neither_values_nor_random_state(tmp_path):
    model = nn.Linear(4, 5)
    before, state = model.weight.detach().clone(), torch.get_rng_state()
    callback = InitialHistograms(tmp_path, {"weight": NORMAL})
    callback.on_fit_start(SimpleNamespace(ckpt_path=None, is_global_zero=True), SimpleNamespace(model=model))
    assert torch.equal(model.weight, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_parameter_is_refused_with_a_suggestion(tmp_path):
    with pytest.raises(BuilderError, match="did you mean 'weight'"):
        fit(InitialHistograms(tmp_path, {"wieght": NORMAL}))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        pytest.param({}, "at least one needed", id="none"),
        pytest.param({"w": {**NORMAL, "std": -1.0}}, "callbacks.picture.parameters.w.std", id="negative deviation"),
        pytest.param({"w": {**NORMAL, "sdt": 1.0}}, "callbacks.picture.parameters.w.sdt", id="unknown key"),
        pytest.param({"w": {**NORMAL, "distribution": "cauchy"}}, "'uniform' or 'normal'", id="unknown distribution"),
        pytest.param({"w": {**NORMAL, "std": True}}, "callbacks.picture.parameters.w.std", id="bool for a number"),
    ],
)
def test_malformed_expectation_is_refused_by_its_address(tmp_path, parameters, message):
    with pytest.raises(BuilderError, match=message):
        InitialHistograms(tmp_path, parameters)


def test_missing_matplotlib_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BuilderError, match=r"pip install 'builder\[recipes\]'"):
        InitialHistograms(tmp_path, {"weight": NORMAL})


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_expected_density_has_unit_mass_and_its_deviation(distribution):
    expected = Expected(title="", distribution=distribution, std=0.3)
    x = torch.linspace(-3, 3, 200_001, dtype=torch.float64)
    density = expected.density(x)
    assert torch.trapezoid(density, x).item() == pytest.approx(1, rel=1e-3)
    assert torch.trapezoid(density * x**2, x).sqrt().item() == pytest.approx(0.3, rel=1e-3)


def test_values_are_described_by_count_mean_deviation_and_range():
    assert describe(torch.tensor([-1.0, 1.0])) == "2 values\nmean +0.0000,  std 1.4142\nrange -1.0000 to +1.0000"


def test_memory_is_described_by_what_is_odd_in_it():
    memory = torch.tensor([0.0, 1e-42, float("nan"), -3.0])
    text = describe_memory(memory)
    assert "zero 1,  denormal 1,  not finite 1" in text
    assert "1e-42 to 3" in text


@pytest.mark.parametrize("fill", [0.0, float("nan")])
def test_memory_without_any_magnitude_is_drawn_all_the_same(tmp_path, monkeypatch, fill):
    monkeypatch.setattr("recipes.pictures.uninitialised", lambda shape: torch.full(tuple(shape), fill))
    fit(InitialHistograms(tmp_path, {"weight": NORMAL}))
    assert (tmp_path / "initial_values.png").is_file()


def test_uninitialised_memory_has_the_shape_asked_for():
    assert uninitialised((3, 4)).shape == (3, 4)
