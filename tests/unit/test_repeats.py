"""The dry run of equal blocks: computed once, refused as before."""

from unittest import mock

import pytest
import torch

import builder
from builder.build import prove
from builder.repeats import equal_blocks_once

BLOCK = {
    "args": ["d", "k"],
    "inputs": ["x"],
    "layers": {"fc": {"kind": "Linear", "in_features": "=d", "out_features": "=d"}, "drop": {"kind": "Dropout"}},
    "forward": "drop(fc(x))[:, :k]",
}


def model(repeat, k="=d", forward="for block in h:\n    x = block(x)\nreturn x", **layer):
    h = {"kind": "Block", "d": "=d", "k": k, "repeat": repeat, **layer}
    return {
        "args": {"d": 6},
        "inputs": {"x": {"shape": ["batch", "=d"]}},
        "blocks": {"Block": BLOCK},
        "layers": {"h": h},
        "forward": forward,
    }


def calls_of_linear(data):
    with mock.patch.object(torch.nn.Linear, "forward", autospec=True, side_effect=torch.nn.Linear.forward) as forward:
        prove(data)
    return forward.call_count


def test_equal_blocks_compute_once_in_each_mode(given):
    assert calls_of_linear(given(model(8))) == 2
    assert calls_of_linear(given(model(8, k="=d - i * 0 if i < 4 else d * 1"))) == 2


def test_blocks_with_other_settings_or_other_inputs_compute_apart(given):
    one_by_one = "for block in h:\n    x = block(x)\nreturn x.unsqueeze(0)[0]"
    assert calls_of_linear(given(model(3, forward=one_by_one))) == 2
    narrow = {**model(2), "forward": "return h[1](h[0](x)), h[1](x[:1])"}
    assert calls_of_linear(given(narrow)) == 4, "a batch of another size"


def test_misfit_in_a_later_block_is_refused(given, refusal):
    problem = refusal(builder.build, given(model(3, k="=d if i == 0 else d - 1")))
    assert problem.address == "blocks.Block.forward"
    assert "fc" in problem.what


def test_results_are_of_the_shapes_that_each_block_computes():
    meta = prove(model(4, k="=d")).meta
    x = torch.empty(3, 6, device="meta")
    with torch.no_grad():
        alone = meta(x)
        with equal_blocks_once(meta):
            together = meta(x)
    assert (together.shape, together.dtype, together.stride()) == (alone.shape, alone.dtype, alone.stride())
    assert all("forward" not in vars(block) for block in meta.h), "the blocks are left as they were"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_module_with_values_runs_as_it_is(device):
    built = builder.build(model(2), device=device)
    with equal_blocks_once(built):
        assert ("forward" in vars(built.h[0])) == (device == "meta")
