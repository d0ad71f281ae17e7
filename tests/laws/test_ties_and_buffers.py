"""Laws L6 and L7: tied stays tied, and buffers are saved if and only if persistent."""

import copy
import math
import pickle

import pytest
import torch

import builder
from builder.build import proof_of
from builder.verify import check_module

TIED = {
    "inputs": {"ids": {"shape": ["batch"], "dtype": "int64"}},
    "layers": {
        "a": {"kind": "Embedding", "num_embeddings": 7, "embedding_dim": 3},
        "b": {"kind": "Linear", "in_features": 3, "out_features": 7, "bias": False},
    },
    "tie": {"b.weight": "a.weight"},
}


def reload(model):
    other = builder.build(TIED, seed=9)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize(
    "pass_through",
    [
        pytest.param(lambda model: model, id="build"),
        pytest.param(lambda model: model.to(torch.float64), id="to"),
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda model: pickle.loads(pickle.dumps(model)), id="pickle"),
        pytest.param(reload, id="load_state_dict"),
    ],
)
@pytest.mark.parametrize("rng", ["keyed", "torch"])
def test_tied_weight_stays_one_tensor_and_is_counted_once(pass_through, rng, given):
    model = pass_through(builder.build(given(TIED), rng=rng))
    assert model.a.weight is model.b.weight
    assert len(list(model.parameters())) == 1
    rows = {row.name: row for row in builder.parameters(model)}
    assert rows["a.weight"].numel == 21
    assert (rows["b.weight"].numel, rows["b.weight"].tied_to) == (0, "a.weight")


def test_tied_owner_has_the_values_that_it_has_untied():
    untied = builder.build({**TIED, "tie": {}})
    assert torch.equal(builder.build(TIED).a.weight, untied.a.weight)


def test_chain_of_ties_ends_at_one_owner_in_any_order():
    layer = {"kind": "Linear", "in_features": 2, "out_features": 2, "bias": False}
    data = {"inputs": {"x": {}}, "layers": {"a": layer, "b": layer, "c": layer}}
    for order in (("a", "b"), ("b", "a")):
        ties = {"a": {"a.weight": "b.weight"}, "b": {"b.weight": "c.weight"}}
        model = builder.build({**data, "tie": {k: v for name in order for k, v in ties[name].items()}})
        assert model.a.weight is model.b.weight is model.c.weight


def test_parted_tie_and_thawed_parameter_are_reported_by_name():
    model = builder.build(TIED, freeze={"all": {"match": "*"}})
    proof = proof_of(model)
    check_module(model, proof.ties, proof.frozen)
    model.b.weight = torch.nn.Parameter(model.a.weight.detach().clone())
    model.a.weight.requires_grad_(True)
    with pytest.raises(builder.BuilderError) as caught:
        check_module(model, proof.ties, proof.frozen)
    assert [p.address for p in caught.value.problems] == ["b.weight", "a.weight"]
    assert "no longer tied to 'a.weight'" in caught.value.problems[0].what
    assert "leave requires_grad" in caught.value.problems[1].hint


def test_module_on_meta_is_reported():
    with pytest.raises(builder.BuilderError, match="on meta"):
        check_module(torch.nn.Linear(1, 1, device="meta"), {}, [])


BUFFERS = {
    "args": {"n": 6},
    "inputs": {"x": {"shape": ["batch", 6]}},
    "layers": {"fc": {"kind": "Linear", "in_features": 6, "out_features": 6}},
    "buffers": {
        "saved": {"value": "=arange(n) / n"},
        "unsaved": {"value": "=1 / sqrt(n)", "persistent": False},
        "count": {"value": 0, "dtype": "int64"},
    },
    "forward": "count += 1\nreturn fc(x) * saved * unsaved",
}


@pytest.mark.parametrize("rng", ["keyed", "torch"])
def test_buffer_is_saved_iff_persistent_and_equals_its_expression(rng, given):
    model = builder.build(given(BUFFERS), rng=rng)
    assert {"saved", "count"} <= set(model.state_dict())
    assert "unsaved" not in model.state_dict()
    assert torch.equal(model.saved, torch.arange(6) / 6)
    assert model.unsaved.item() == torch.tensor(1 / math.sqrt(6)).item()
    assert model.count.dtype is torch.int64
    assert not {"saved", "unsaved", "count"} & {name for name, _ in model.named_parameters()}
    assert {row.name: row.persistent for row in builder.parameters(model) if row.kind == "buffer"} == {
        "saved": True,
        "unsaved": False,
        "count": True,
    }


def test_assigning_to_a_buffer_updates_it_in_place():
    model = builder.build(BUFFERS)
    before = model.count
    model(torch.zeros(1, 6))
    model(torch.zeros(1, 6))
    assert model.count is before
    assert model.count.item() == 2


def test_buffers_move_with_the_module_and_the_proof_leaves_them_alone():
    model = builder.build(BUFFERS).to("meta")
    assert all(buffer.is_meta for buffer in model.buffers())
    assert builder.build(BUFFERS).count.item() == 0
