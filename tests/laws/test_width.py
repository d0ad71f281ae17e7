"""With policy mup a width changes neither the scale of activations nor how far a step moves them.

`benchmarks/mup.py` goes to width 1024, checks a GPT as well, and the transfer of the best learning rate.
"""

import pytest

from benchmarks.mup import FLAT, GROWING, MLP, MUP, SGD, STANDARD, coordinates, growth_of_logits, growths

WIDTHS = (64, 128, 256, 512)


@pytest.mark.parametrize(("case", "seeds"), [pytest.param(MLP, 48, id="Adam"), pytest.param(SGD, 24, id="SGD")])
def test_outputs_are_flat_in_width(case, seeds):
    found = coordinates(case, MUP, WIDTHS, seeds)
    for layers in found.values():
        assert list(layers) == ["act1", "act2", "head"]
        for values in layers.values():
            assert min(values) > 0.01
            assert growths(values) == pytest.approx([1.0] * 3, abs=FLAT)


def test_without_mup_a_wider_model_moves_further():
    found = coordinates(MLP, STANDARD, WIDTHS, seeds=8)
    assert growth_of_logits(MLP, found) > GROWING
    assert all(growth > 1 + FLAT for growth in growths(found["change"]["act2"]))


def test_at_the_base_width_both_schemes_are_one():
    assert coordinates(MLP, MUP, WIDTHS[:1], seeds=4) == coordinates(MLP, STANDARD, WIDTHS[:1], seeds=4)
