"""On a CUDA device the recipes train, from the initial bits of the CPU."""

import pytest
import torch

from builder.config import composed
from builder.lit_module import lightning_module

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
RECIPES = ["digits_mlp", "three_kinds", "char_gpt"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_runs_on_the_gpu(command, recipe):
    assert command(f"+recipes={recipe}", "trainer=gpu", "trainer.max_epochs=1").code == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_initial_weights_on_the_gpu_are_those_of_the_cpu(recipe):
    config, _ = composed([f"+recipes={recipe}"])
    cpu, gpu = lightning_module(config), lightning_module(config).to("cuda")
    there = gpu.model.state_dict()
    for name, value in cpu.model.state_dict().items():
        assert torch.equal(there[name].cpu(), value), name
