"""Every choice in `conf/` and every recipe composes and is proved."""

from pathlib import Path

import pytest
import torch

import builder
from builder.cli import main
from builder.config import composed
from builder.lit_module import plan_run

ROOT = Path(__file__).parents[2]
RECIPES = sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml"))
MODELS = sorted((ROOT / "conf" / "model").glob("*.yaml"))
SCHEMES = sorted(file.stem for file in (ROOT / "conf" / "init").glob("*.yaml"))
FROM_FILES = [scheme for scheme in SCHEMES if scheme.endswith("_huggingface")]  # they need a checkpoint
OPTIONS = sorted(f"{file.parent.name}={file.stem}" for file in (ROOT / "conf").glob("*/*.yaml"))


def proof(*overrides):
    config, origin = composed(overrides)
    return plan_run(config, places=origin.places, name=origin.name, scheme_name=origin.scheme_name)


def test_there_are_three_recipes_and_ten_schemes():
    assert {"digits_mlp", "three_kinds", "char_gpt"} <= set(RECIPES)
    assert len(SCHEMES) >= 10


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_proved(recipe):
    assert proof(f"+recipes={recipe}").proof.parameters


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_says_purpose_command_time_and_what_is_seen(recipe):
    header = (ROOT / "recipes" / f"{recipe}.yaml").read_text()
    for word in ("Purpose:", f"python train.py +recipes={recipe}", "Time:", "You see:"):
        assert word in header


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme not in FROM_FILES])
def test_init_scheme_builds_the_default_model(scheme):
    config, _ = composed([f"init={scheme}", "model.args.hidden=16"])
    lit = builder.lightning_module(config)
    assert all(torch.isfinite(parameter).all() for parameter in lit.model.parameters())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_init_scheme_says_its_source_and_when_to_use_it(scheme):
    text = (ROOT / "conf" / "init" / f"{scheme}.yaml").read_text()
    assert "# Source:" in text and "When:" in text


@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.stem)
def test_model_file_passes_the_check(file, capsys):
    assert main(["check", str(file)]) == 0
    assert f"{file.name}: ok, " in capsys.readouterr().out


@pytest.mark.parametrize("option", OPTIONS)
def test_option_of_a_group_composes(option):
    group, _, name = option.partition("=")
    config, _ = composed([option])
    assert group in config, name
