"""Laws L1 and L2: nothing uninitialised, and init is a pure function of seed, name, policy and shape."""

import math
import os
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import given as given_examples
from hypothesis import settings
from hypothesis import strategies as st
from random_models import models

import builder
from builder import initial_values, initialise
from builder.build import materialise, prove
from builder.initialize import chunks
from builder.initialize.streams import CHUNK
from builder.parallel import cores

LAW = settings(max_examples=200, deadline=None, derandomize=True)
RUN = chunks.run_all


def model(layers, **more):
    return {"inputs": {"x": {}}, "layers": layers, "forward": "x", **more}


@contextmanager
def poisoned():
    """A context in which fresh memory holds nan."""

    def poison(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    with torch.device("meta"):  # at its first use, such a context remembers which functions make tensors
        torch.empty(0)
    with (
        mock.patch.object(torch, "empty", poison(torch.empty)),
        mock.patch.object(torch, "empty_like", poison(torch.empty_like)),
    ):
        yield


@contextmanager
def filled_by(threads, task_order=None, chunk=7):
    """A context in which models are filled by some threads, in some order of the tasks, in chunks of a few values."""

    def run(tasks, most):
        RUN(tasks if task_order is None else task_order.sample(tasks, len(tasks)), most)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with (
            mock.patch.object(chunks, "CHUNK", chunk),
            mock.patch.object(chunks, "cores", lambda: threads),
            mock.patch.object(chunks, "run_all", run),
        ):
            yield
    finally:
        torch.set_num_threads(before)


def assert_same_bits(found, expected):
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


# ---- over random models --------------------------------------------------------------------------------------------


@LAW
@given_examples(data=models(), rng=st.sampled_from(["keyed", "torch"]))
def test_every_value_is_written_even_where_memory_is_poisoned(data, rng):
    with poisoned():
        built = builder.build(data, rng=rng)
    values = built.state_dict()
    for name, tensor in values.items():
        assert tensor.isfinite().all(), name
    for name, layer in data["layers"].items():
        init = layer.get("init")
        if (
            isinstance(init, dict)
            and init["policy"] == "copy"
            and data.get("init", {}).get("late", {}).get("match") != name
        ):
            assert torch.equal(values[name], values[init["of"]]), f"{name} copies {init['of']}"


@LAW
@given_examples(
    data=models(), threads=st.sampled_from([1, 2, 4]), order=st.randoms(use_true_random=False), added=st.booleans()
)
def test_order_other_layers_and_threads_change_no_bit(data, threads, order, added):
    with filled_by(1):
        base = builder.build(data, seed=3).state_dict()
    layers = order.sample(list(data["layers"].items()), len(data["layers"]))
    extra = [("first", {"kind": "Linear", "in_features": 5, "out_features": 3})] if added else []
    with filled_by(threads, order):
        changed = builder.build({**data, "layers": dict(extra + layers)}, seed=3).state_dict()
    assert_same_bits(changed, base)


@LAW
@given_examples(data=models(), rows=st.tuples(st.integers(0, 4), st.integers(0, 4)).map(sorted))
def test_rows_have_the_bits_that_they_have_in_the_built_model(data, rows):
    with filled_by(2):
        built = builder.build(data, seed=4)
        for name, parameter in built.named_parameters(remove_duplicate=False):
            assert torch.equal(initial_values(built, name, rows=tuple(rows)), parameter[slice(*rows)]), name


@LAW
@given_examples(data=models(), emptied=st.booleans())
def test_module_from_meta_gets_the_bits_of_a_direct_build(data, emptied):
    proof = prove(data)
    built = materialise(proof, seed=5)
    later = materialise(proof, seed=5, device="meta")
    assert all(tensor.is_meta for tensor in [*later.parameters(), *later.buffers()])
    with poisoned():
        initialise(later.to_empty(device="cpu") if emptied else later)
    assert_same_bits(dict(later.named_parameters()), dict(built.named_parameters()))
    assert_same_bits(dict(later.named_buffers()), dict(built.named_buffers()))
    assert len(list(later.parameters())) == len(list(built.parameters())), "ties hold"
    assert [p.requires_grad for p in later.parameters()] == [p.requires_grad for p in built.parameters()]


# ---- refusals ------------------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("device", ["cdua", "cuda:99", 3.5])
def test_device_that_is_not_there_is_refused_before_the_model_is_read(refusal, device):
    problem = refusal(builder.build, "no such file.yaml", device=device)
    assert problem.address == "device"
    assert problem.what.startswith(f"{device!r}: ")
    assert "give cpu, cuda" in problem.hint


# ---- large parameters, and what draws in its own way ---------------------------------------------------------------


def large(policy, rows=2 * CHUNK // 512 + 3, columns=512):
    return model({"w": {"kind": "Parameter", "shape": [rows, columns], "axes": ["in", "out"], "init": policy}})


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(large(policy), id=policy)
        for policy in ("normal", "uniform", "trunc_normal", "kaiming_normal", "xavier_uniform", "ones")
    ]
    + [
        pytest.param(large({"policy": "trunc_normal", "a": 1.5, "b": 2.0}), id="trunc_normal in a tail"),
        pytest.param(large("orthogonal", 200, 300), id="orthogonal, whose QR depends on torch's threads"),
        pytest.param(large({"policy": "sparse", "sparsity": 0.3}, 60, 80), id="sparse"),
    ],
)
def test_number_of_threads_changes_no_bit_of_a_large_parameter(data):
    found = []
    for threads in (1, 2, 4):
        with filled_by(threads, chunk=CHUNK):
            found.append(builder.build(data).w)
            assert torch.get_num_threads() == threads, "the caller's setting is kept"
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_each_chunk_has_a_stream_of_its_own():
    values = builder.build(large("normal")).w.detach().view(-1)
    first, second, rest = values.split(CHUNK)
    assert not torch.equal(first, second)
    assert not torch.equal(first[: len(rest)], rest)


def test_zeros_of_a_sparse_parameter_do_not_depend_on_other_parameters():
    sparse = {
        "kind": "Parameter",
        "shape": [20, 20],
        "axes": ["in", "out"],
        "init": {"policy": "sparse", "sparsity": 0.5},
    }
    alone = builder.build(model({"w": sparse})).w
    assert torch.equal(builder.build(model({"v": sparse, "w": sparse})).w, alone)


def test_layer_that_only_its_own_method_can_fill_draws_from_its_own_name():
    layer = {"kind": "gate.Gate"}
    alone = builder.build(model({"a": layer}), allow=["gate"])
    beside = builder.build(model({"b": layer, "a": layer}), allow=["gate"])
    assert torch.equal(beside.a.scale, alone.a.scale)
    assert not torch.equal(beside.b.scale, beside.a.scale)


@pytest.mark.parametrize("tie", [{"b.scale": "a.scale"}, {"a.scale": "b.scale"}], ids=["before", "after"])
def test_layer_that_only_its_own_method_can_fill_leaves_a_parameter_of_another_that_it_is_tied_to(tie):
    layer, (owner,) = {"kind": "gate.Affine"}, tie.values()
    name = owner.partition(".")[0]
    alone = builder.build(model({name: layer}), allow=["gate"]).state_dict()
    tied = builder.build(model({"a": layer, "b": layer}, tie=tie), allow=["gate"]).state_dict()
    assert_same_bits(tied, alone)


@pytest.mark.parametrize("tie", [{"b.inner.scale": "a.scale"}, {"a.scale": "b.inner.scale"}], ids=["before", "after"])
def test_layer_whose_own_method_draws_the_layer_in_it_leaves_a_parameter_of_another_that_is_tied_there(tie):
    layers, (owner,) = {"a": {"kind": "gate.Gate"}, "b": {"kind": "gate.Pair"}}, tie.values()
    alone = builder.build(model({owner[0]: layers[owner[0]]}), allow=["gate"]).state_dict()
    assert_same_bits(builder.build(model(layers, tie=tie), allow=["gate"]).state_dict(), alone)


@pytest.mark.parametrize(("kind", "alias", "owner"), [("Affine", "shift", "scale"), ("Pair", "inner.scale", "shift")])
def test_values_that_are_tied_within_a_layer_are_drawn_by_its_own_method(kind, alias, owner):
    data = model({"b": {"kind": f"gate.{kind}"}}, tie={f"b.{alias}": f"b.{owner}"})
    with poisoned():
        built = builder.build(data, allow=["gate"]).b
    assert built.get_parameter(alias) is built.get_parameter(owner)
    assert built.get_parameter(owner).isfinite().all()


def test_layers_within_one_that_fills_itself_are_as_it_leaves_them():
    plain = {"kind": "Linear", "in_features": 2, "out_features": 3}
    fc = builder.build(model({"l": {"kind": "Sequential", "layers": {"fc": plain}}})).l.fc
    with poisoned():
        built = builder.build(model({"l": {"kind": "gate.Container"}}), allow=["gate"]).l
    assert torch.equal(built.fc.weight, 0.5 * fc.weight) and built.fc.bias.tolist() == [0.25] * 3
    assert built.inner.scale.isfinite().all() and 0 < built.rest.weight.abs().max() <= 3**-0.5
    ruled = model({"l": {"kind": "gate.Container"}}, init={"r": {"match": "l.fc.bias", "policy": "ones"}})
    assert builder.build(ruled, allow=["gate"]).l.fc.bias.tolist() == [1] * 3


def test_attention_of_ones_own_is_filled_by_its_own_method(refusal):
    layer = {"kind": "gate.Attention", "embed_dim": 4, "num_heads": 2}
    problem = refusal(builder.build, model({"l": layer}), allow=["gate"])
    assert problem.address == "l.in_proj_bias"
    assert "Attention's own _reset_parameters left 12 of 12 values unwritten" in problem.what
    built = builder.build(
        model({"l": layer}, init={"b": {"match": "l.in_proj_bias", "policy": "ones"}}), allow=["gate"]
    )
    assert not built.l.in_proj_weight.any() and built.l.out_proj.weight.any() and not built.l.out_proj.bias.any()


def test_matrices_of_a_transformer_are_drawn_as_it_draws_them_each_from_its_own_name():
    sizes = {"d_model": 8, "nhead": 2, "num_decoder_layers": 1, "dim_feedforward": 512, "batch_first": True}
    one, two = (
        builder.build(model({"l": {"kind": "Transformer", "num_encoder_layers": layers, **sizes}})) for layers in (1, 2)
    )
    largest = one.l.encoder.layers[0].linear1.weight.abs().max()
    assert 0.95 < largest / math.sqrt(6 / (8 + 512)) <= 1, "xavier_uniform; a Linear by itself reaches 8**-0.5"
    assert not one.l.encoder.layers[0].self_attn.in_proj_bias.any()
    assert_same_bits(one.state_dict(), {name: two.state_dict()[name] for name in one.state_dict()})
    name = "l.encoder.layers.0.linear1.weight"
    assert torch.equal(initial_values(one, name), one.get_parameter(name))


@pytest.mark.parametrize("ruled", [[], ["l.shift"], ["l.codes"]], ids=["", "numbers have a rule", "whole ones have"])
def test_layer_whose_own_method_leaves_values_unwritten_is_refused_by_their_names(ruled):
    zeros = {"policy": "expression", "value": "=0"}
    init = {"init": {"r": {"match": ruled, **zeros}}} if ruled else {}
    with pytest.raises(builder.BuilderError) as caught:
        builder.build(model({"l": {"kind": "gate.Half"}}, **init), allow=["gate"])
    problems = caught.value.problems
    assert [problem.address for problem in problems] == [n for n in ("l.shift", "l.codes") if n not in ruled]
    assert all("Half's own reset_parameters left 3 of 3 values unwritten" in problem.what for problem in problems)
    assert all("give it an init rule" in problem.hint for problem in problems)


def test_layer_whose_own_method_reads_what_it_has_written_is_built_and_what_a_rule_fills_later_is_refused(refusal):
    built = builder.build(model({"l": {"kind": "gate.Follower"}}), allow=["gate"]).l
    assert torch.equal(built.shift, 2 * built.scale)
    data = model({"l": {"kind": "gate.Reader"}}, init={"r": {"match": "l.scale", "policy": "ones"}})
    problem = refusal(builder.build, data, allow=["gate"])
    assert problem.address == "l.shift"
    assert "left 3 of 3 values unwritten, or NaN" in problem.what


def test_layer_whose_own_method_leaves_values_unwritten_has_those_of_its_constructor_in_torchs_order():
    built = builder.build(model({"l": {"kind": "gate.Half"}}), allow=["gate"], rng="torch").l
    assert built.shift.tolist() == [7, 7, 7]
    assert built.codes.tolist() == [0, 1, 2]


def test_layer_whose_own_method_writes_whole_numbers_has_the_same_ones_each_time():
    first, second = (builder.build(model({"l": {"kind": "gate.Whole"}}), allow=["gate"]).state_dict() for _ in range(2))
    small = first["l.small"].float()
    assert torch.equal(small, second.pop("l.small").float()) and torch.allclose(small, first["l.scale"], rtol=0.07)
    assert_same_bits(first, second)
    assert 0 <= first["l.codes"].min() <= first["l.codes"].max() < 5


def test_layer_whose_own_method_writes_in_place_needs_no_context_of_its_own():
    scale = builder.build(model({"l": {"kind": "gate.Plain"}}), allow=["gate"]).l.scale
    assert scale.requires_grad and scale.is_leaf
    assert 1 <= scale.min() <= scale.max() <= 2


def test_layer_whose_own_method_fails_is_refused_with_the_reason(refusal):
    data = model({"l": {"kind": "gate.Failing"}})
    problem = refusal(builder.build, data, allow=["gate"])
    assert problem.address == "layers.l"
    assert problem.what == "Failing's own reset_parameters raised KeyError: 'no such scale'"
    assert "mend the method" in problem.hint
    assert builder.build({**data, "init": {"r": {"policy": "ones"}}}, allow=["gate"]).l.scale.tolist() == [1, 1, 1]


def test_layer_whose_own_method_needs_arguments_is_refused_before_memory_but_in_torchs_order(refusal, monkeypatch):
    data = model({"l": {"kind": "gate.Asking"}})
    assert builder.build(data, allow=["gate"], rng="torch").l.scale.isfinite().all()
    monkeypatch.setattr("builder.initialize.fill.materialise", lambda module: pytest.fail("memory"))
    problem = refusal(builder.build, data, allow=["gate"])
    assert problem.address == "l.scale"
    assert "reset_parameters cannot be called without arguments: missing a required argument: 'std'" in problem.what
    assert "give it an init rule" in problem.hint and "rng: torch" in problem.hint
    monkeypatch.undo()
    assert builder.build({**data, "init": {"r": {"policy": "ones"}}}, allow=["gate"]).l.scale.tolist() == [1, 1, 1]


def test_layer_that_fills_itself_may_hold_any_layer_and_any_value_but_nan():
    built = builder.build(model({"l": {"kind": "gate.Mixed"}}), allow=["gate"])
    first = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    assert first["l.scale"].tolist() == [-math.inf] * 3 and not first["l.asking.scale"].isnan().any()
    assert built.l.conv.weight.stride() != (36, 9, 3, 1) and 0 < built.l.conv.weight.abs().max() <= 1 / 6
    assert_same_bits(initialise(built).state_dict(), first)


def test_class_derived_from_one_of_torch_has_torchs_default_beside_what_a_method_of_its_own_fills():
    fc = builder.build(model({"l": {"kind": "Linear", "in_features": 2, "out_features": 3}})).l
    built = builder.build(
        model({"l": {"kind": "gate.Extended", "in_features": 2, "out_features": 3}}), allow=["gate"]
    ).l
    assert torch.equal(built.weight, fc.weight) and torch.equal(built.bias, fc.bias)
    assert built.extra.tolist() == [1, 1, 1]


@pytest.mark.parametrize("rng", ["keyed", "torch"])
def test_class_derived_from_one_of_torch_has_the_default_that_it_gives_itself(rng):
    layers = {
        "fc": {"kind": "gate.Constant", "in_features": 2, "out_features": 3},
        "norm": {"kind": "gate.ResetNorm", "width": 2},
    }
    values = builder.build(model(layers), allow=["gate"], rng=rng).state_dict()
    expected = {"fc.weight": 0.5, "fc.bias": 0.25, "norm.weight": 1, "norm.bias": 0, "norm.gate": 1}
    assert {name: tensor.unique().tolist() for name, tensor in values.items()} == {
        name: [value] for name, value in expected.items()
    }


def test_derived_class_of_a_parametrized_layer_has_the_default_that_it_gives_itself():
    data = model({"l": {"kind": "gate.Normed", "in_features": 2, "out_features": 3}})
    built = builder.build({**data, "init": {"r": {"match": "*.original?", "policy": "ones"}}}, allow=["gate"])
    assert built.l.bias.tolist() == [0.25] * 3


def test_class_derived_from_one_of_torch_whose_default_cannot_be_seen_is_refused_on_meta(refusal):
    problem = refusal(builder.prove, model({"l": {"kind": "gate.GatedNorm", "width": 2}}), allow=["gate"])
    assert problem.address == "l.gate"
    assert "has no default init that is known here" in problem.what
    assert "give an init rule" in problem.hint


@pytest.mark.parametrize("rng", ["keyed", "torch"])
@pytest.mark.parametrize(
    ("kind", "derived", "arguments"),
    [
        ("Embedding", "gate.Words", {"num_embeddings": 5, "embedding_dim": 3, "padding_idx": 1}),
        ("LSTM", "gate.Recurrent", {"input_size": 3, "hidden_size": 4, "proj_size": 2, "bidirectional": True}),
    ],
)
def test_class_derived_from_one_of_torch_that_changes_no_default_has_its_bits(kind, derived, arguments, rng):
    found = [
        builder.build(model({"l": {"kind": name, **arguments}}), allow=["gate"], rng=rng).state_dict()
        for name in (kind, derived)
    ]
    assert_same_bits(*found)


@pytest.mark.parametrize("place", ["set as the default", "in a context"])
def test_default_device_of_the_caller_changes_nothing(place):
    layer = {"kind": "Linear", "in_features": 4, "out_features": 4}
    data = model({"a": layer, "w": large("trunc_normal", 4, 4)["layers"]["w"]}, buffers={"b": {"value": "=arange(3)"}})
    expected = builder.build(data).state_dict()
    if place == "in a context":
        with torch.device("meta"):
            found = builder.build(data).state_dict()
    else:
        torch.set_default_device("meta")
        try:
            found = builder.build(data).state_dict()
        finally:
            torch.set_default_device(None)
    assert_same_bits(found, expected)


def test_a_build_in_inference_mode_leaves_nothing_of_it_behind(conf_models):
    with torch.inference_mode():
        stream = chunks.Stream()
    with mock.patch.object(chunks, "_STREAM", stream):
        with torch.inference_mode():
            inside = builder.build(conf_models["digits_mlp"]).state_dict()
        assert_same_bits(inside, builder.build(conf_models["digits_mlp"]).state_dict())


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not tell")
def test_all_cores_that_the_process_may_use_take_part():
    assert cores() == len(os.sched_getaffinity(0))


# ---- seeds and generators ------------------------------------------------------------------------------------------


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
@pytest.mark.parametrize("init", [None, "xavier_normal", "orthogonal"])
def test_padding_row_stays_zero_under_any_rule(rng, init):
    layer = {"kind": "Embedding", "num_embeddings": 5, "embedding_dim": 3, "padding_idx": 2}
    rows = builder.build(model({"e": layer}), rng=rng, init=init).e.weight.abs().sum(1)
    assert (rows == 0).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("rng", ["keyed", "torch"])
@pytest.mark.parametrize("init", [None, "xavier_normal", "orthogonal"])
@pytest.mark.parametrize(
    "head",
    [
        pytest.param({"kind": "Linear", "in_features": 3, "out_features": 5, "bias": False}, id="of torch"),
        pytest.param({"kind": "gate.Table"}, id="that only its own method can fill"),
    ],
)
def test_padding_row_stays_zero_where_the_embedding_is_tied_to_another_layer(rng, init, head):
    layers = {
        "head": head,
        "e": {"kind": "Embedding", "num_embeddings": 5, "embedding_dim": 3, "padding_idx": 2},
        "f": {"kind": "Embedding", "num_embeddings": 5, "embedding_dim": 3, "padding_idx": 0},
    }
    data = model(layers, tie={"e.weight": "head.weight", "f.weight": "head.weight"})
    rows = builder.build(data, rng=rng, init=init, allow=["gate"]).head.weight.abs().sum(1)
    assert (rows == 0).tolist() == [True, False, True, False, False]
