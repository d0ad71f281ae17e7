"""Laws L1 and L2: nothing uninitialised, and init is a pure function of seed, name, policy and shape."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import builder
from builder.initialize import streams


def model(layers, **more):
    return {"inputs": {"x": {}}, "layers": layers, "forward": "x", **more}


RAW = {"kind": "Parameter", "shape": [3, 4]}


def test_raw_parameter_without_an_init_is_refused(given, refusal):
    problem = refusal(builder.build, given(model({"w": RAW})))
    assert problem.address == "layers.w"
    assert "raw Parameter of shape (3, 4) without an init" in problem.what
    assert "give it init: normal" in problem.hint


def test_raw_parameter_whose_rule_asks_for_the_default_is_refused(given, refusal):
    problem = refusal(builder.build, given(model({"w": RAW}, init={"r": {"policy": "default"}})))
    assert "a raw Parameter has none" in problem.what


def test_empty_memory_is_marked_in_the_table(given):
    table = builder.parameters(builder.build(given(model({"w": {**RAW, "init": "empty"}}))))
    assert [row.rule for row in table] == ["layers.w.init (empty)"]


@pytest.mark.parametrize("rng", ["keyed", "torch"])
def test_every_value_is_written_even_where_memory_is_poisoned(monkeypatch, conf_models, rng):
    real = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: real(*a, **k).fill_(float("nan")))
    for file in conf_models.values():
        for name, tensor in builder.build(file, rng=rng).state_dict().items():
            assert tensor.isfinite().all(), name


LAYERS = st.one_of(
    st.builds(
        lambda a, b: {"kind": "Linear", "in_features": a, "out_features": b}, st.integers(1, 9), st.integers(1, 9)
    ),
    st.builds(lambda n: {"kind": "Embedding", "num_embeddings": n, "embedding_dim": 3}, st.integers(1, 9)),
    st.builds(lambda n: {"kind": "LayerNorm", "normalized_shape": n}, st.integers(1, 9)),
    st.builds(
        lambda n, init: {"kind": "Parameter", "shape": [n, 4], "axes": ["in", "out"], "init": init},
        st.integers(1, 9),
        st.sampled_from(["normal", "kaiming_uniform", "orthogonal", "trunc_normal", "xavier_normal", "ones"]),
    ),
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(layers=st.lists(LAYERS, min_size=1, max_size=5), data=st.data())
def test_order_other_layers_and_threads_change_no_bit(layers, data):
    named = {f"layer_{i}": layer for i, layer in enumerate(layers)}
    base = builder.build(model(named), seed=3).state_dict()
    shuffled = dict(data.draw(st.permutations(list(named.items()))))
    in_front = {"first": {"kind": "Linear", "in_features": 2, "out_features": 2}, **shuffled}
    threads = torch.get_num_threads()
    try:
        for count, changed in ((1, shuffled), (2, in_front), (4, named)):
            torch.set_num_threads(count)
            other = builder.build(model(changed), seed=3).state_dict()
            for name, tensor in base.items():
                assert torch.equal(other[name], tensor), name
    finally:
        torch.set_num_threads(threads)


def large(policy):
    rows = 2 * streams.CHUNK // 512 + 3
    return model({"w": {"kind": "Parameter", "shape": [rows, 512], "axes": ["in", "out"], "init": policy}})


@pytest.mark.parametrize("policy", ["normal", "uniform", "trunc_normal", "kaiming_normal"])
def test_parameter_of_several_chunks_does_not_depend_on_the_number_of_cores(monkeypatch, policy):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    one = builder.build(large(policy)).w
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    four = builder.build(large(policy)).w
    assert one.numel() > 2 * streams.CHUNK
    assert torch.equal(one, four)
    chunks = one.detach().view(-1).split(streams.CHUNK)
    assert not torch.equal(chunks[0], chunks[1]), "each chunk has its own stream"


def test_seed_changes_values_and_zero_is_a_seed(conf_models):
    build = [builder.build(conf_models["gpt"], seed=seed).wte.weight for seed in (0, 0, 1)]
    assert torch.equal(build[0], build[1])
    assert not torch.equal(build[0], build[2])


@pytest.mark.parametrize("rng", ["keyed", "torch"])
def test_building_leaves_the_global_generator_as_it_was(conf_models, rng):
    before = torch.get_rng_state()
    builder.build(conf_models["gpt"], rng=rng)
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_of_one_shape_get_values_of_their_own():
    layer = {"kind": "Linear", "in_features": 4, "out_features": 4}
    built = builder.build(model({"a": layer, "b": layer}))
    assert not torch.equal(built.a.weight, built.b.weight)


@pytest.mark.parametrize("rng", ["keyed", "torch"])
@pytest.mark.parametrize("init", [None, "xavier_normal"])
def test_padding_row_stays_zero_under_any_rule(rng, init):
    layer = {"kind": "Embedding", "num_embeddings": 5, "embedding_dim": 3, "padding_idx": 2}
    rows = builder.build(model({"e": layer}), rng=rng, init=init).e.weight.abs().sum(1)
    assert (rows == 0).tolist() == [False, False, True, False, False]
