"""Composition: Hydra's errors in our words, and where a model's keys stand."""

import pytest

from builder.config import composed, origin
from builder.errors import BuilderError
from builder.help import help_text


@pytest.mark.parametrize(
    ("override", "address", "what", "hint"),
    [
        pytest.param("optimizer.lrr=1", "optimizer.lrr", "no such group or key", "did you mean 'lr'?", id="key"),
        pytest.param("modell=gpt", "modell", "no such group or key", "did you mean 'model'?", id="group"),
        pytest.param("model=gtp", "model/gtp", "group 'model' has no config 'gtp'", "did you mean 'gpt'?", id="choice"),
        pytest.param("+recipes=x", "recipes/x", "group 'recipes' has no config 'x'", "known: char_gpt", id="recipe"),
        pytest.param("seed=[1", "seed=[1", "no viable alternative", "override_grammar", id="grammar"),
        pytest.param("+seed=1", "overrides", "already at 'seed'", "remove + prefix", id="a plus too many"),
    ],
)
def test_error_of_composition_is_told_in_our_words(refusal, override, address, what, hint):
    problem = refusal(composed, [override])
    assert problem.address == address
    assert what in problem.what
    assert hint in problem.hint


def test_composed_config_is_the_job_without_hydra():
    config, found = composed(["model=gpt", "init=orthogonal"])
    assert "hydra" not in config
    assert (found.name, found.scheme_name) == ("gpt", "init=orthogonal")
    assert found.places.of("layers").startswith("gpt.yaml:")


def test_override_is_the_place_of_the_key_that_it_set():
    places = origin({"model": "digits_mlp"}, ["model.args.hidden=3", "+model.tie={a: b}", "seed=1"]).places
    assert places.of("args.hidden") == "override model.args.hidden=3"
    assert places.of("tie.a") == "override +model.tie={a: b}"
    assert places.of("layers.fc1.kind").startswith("digits_mlp.yaml:")


def test_interpolation_in_an_override_is_left_to_the_config():
    config, _ = composed(["data.seed=${init_seed}", "init_seed=5"])
    assert config.data.seed == 5


def test_unknown_model_has_no_lines():
    assert origin({}, []).places.of("layers") == "model"


def test_recipe_is_found_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, _ = composed(["+recipes=char_gpt"])
    assert config.monitor == "val/loss"


def test_wrong_recipe_is_a_builder_error():
    with pytest.raises(BuilderError, match=r"recipes/x: group 'recipes' has no config 'x'"):
        composed(["+recipes=x"])


def test_help_names_groups_and_recipes():
    assert "  trainer: auto, cpu, gpu\n" in help_text()
    assert "  recipes: char_gpt, digits_mlp, three_kinds\n" in help_text()
