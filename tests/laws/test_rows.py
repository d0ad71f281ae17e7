"""Law L2 for parts: rows of a parameter, and shards on two processes, have the bits that they have in the whole."""

from unittest import mock

import pytest
import torch

import builder
from builder import initial_values, initialise
from builder.build import materialise, prove
from builder.initialize import chunks, streams
from builder.initialize.chunks import Piece, fill_pieces, fill_range
from builder.initialize.draws import fill_of
from builder.initialize.shards import check_shards
from builder.initialize.streams import CHUNK

LAYERS = {
    "fc": {"kind": "Linear", "in_features": 6, "out_features": 10},
    "emb": {"kind": "Embedding", "num_embeddings": 9, "embedding_dim": 4, "padding_idx": 3},
    "w": {"kind": "Parameter", "shape": [5, 7], "axes": ["in", "out"], "init": "orthogonal"},
    "twin": {"kind": "Parameter", "shape": [7, 5]},
    "gain": {"kind": "Parameter", "shape": [], "init": "normal"},
    "narrow": {"kind": "Parameter", "shape": [6, 6], "dtype": "float16", "init": "trunc_normal"},
    "head": {"kind": "Linear", "in_features": 4, "out_features": 9, "bias": False},
}
MODEL = {
    "inputs": {"x": {}},
    "layers": LAYERS,
    "forward": "x",
    "tie": {"head.weight": "emb.weight", "twin": {"source": "w", "transpose": True}},
}


OWN = {"inputs": {"x": {}}, "layers": {"gate": {"kind": "gate.Gate"}}, "forward": "x"}
DRAWN = ["fc.weight", "fc.bias", "emb.weight", "w", "twin", "gain", "narrow", "head.weight"]


@pytest.mark.parametrize("name", DRAWN)
def test_initial_values_are_those_of_the_built_model(name, given):
    built = builder.build(given(MODEL), seed=7)
    expected = getattr(built, name) if name == "twin" else built.get_parameter(name)
    for source in (built, prove(MODEL)):
        values = initial_values(source, name, seed=7)
        assert values.dtype == expected.dtype
        assert torch.equal(values, expected)
        if expected.ndim:
            assert torch.equal(initial_values(source, name, rows=(2, 5), seed=7), expected[2:5])
            assert initial_values(source, name, rows=(4, 4), seed=7).shape == expected[4:4].shape


def test_initial_values_of_a_trained_model_are_those_it_started_from():
    built = builder.build(MODEL, seed=7, freeze={"all": {"match": "fc.weight"}})
    start = built.fc.weight.detach().clone()
    with torch.no_grad():
        built.fc.weight.add_(1)
    assert torch.equal(initial_values(built.double(), "fc.weight"), start)
    assert not torch.equal(initial_values(built, "fc.weight", seed=8), start)


@pytest.mark.parametrize("policy", ["normal", "trunc_normal", "uniform", "orthogonal", "eye"])
def test_any_range_of_several_chunks_has_the_bits_of_the_whole(policy):
    shape = (40, 20)
    fill = fill_of(policy, {}, shape)
    with mock.patch.object(chunks, "CHUNK", 64):
        whole = fill_range(torch.empty(shape), fill, 1, "w", shape).view(-1)
        for start, end in [(0, 800), (0, 64), (64, 128), (63, 65), (10, 20), (100, 700), (799, 800), (5, 5)]:
            part = fill_range(torch.empty(end - start), fill, 1, "w", shape, start)
            assert torch.equal(part, whole[start:end]), (start, end)


def test_range_draws_only_the_chunks_that_hold_it():
    shape = (10 * CHUNK,)
    with mock.patch.object(streams, "stream_words", wraps=streams.stream_words) as hashed:
        fill_range(torch.empty(CHUNK + 2), fill_of("normal", {}, shape), 0, "w", shape, 3 * CHUNK - 1)
    assert {call.args[2] for call in hashed.call_args_list} == {2, 3, 4}


def test_failure_in_a_thread_ends_the_fill_and_reaches_the_caller():
    def fail(part, generator, start):
        raise ValueError(f"at {start}")

    pieces = [Piece(torch.empty(CHUNK), type(fill_of("ones", {}, ()))(fail), str(i), (CHUNK,)) for i in range(20)]
    with mock.patch.object(chunks, "cores", lambda: 2), pytest.raises(ValueError, match="at 0"):
        fill_pieces(pieces, 0)


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_unknown_name_is_refused_with_the_nearest(refusal):
    problem = refusal(initial_values, builder.build(MODEL), "fc.weigth")
    assert problem.address == "fc.weigth"
    assert "no parameter 'fc.weigth'" in problem.what
    assert "fc.weight" in problem.hint


@pytest.mark.parametrize(
    ("name", "rows", "hint"),
    [
        pytest.param("fc.weight", (0, 11), "from 0 to 10", id="beyond the end"),
        pytest.param("fc.weight", (-1, 3), "from 0 to 10", id="negative"),
        pytest.param("fc.weight", (5, 3), "from 0 to 10", id="backwards"),
        pytest.param("gain", (0, 1), "leave rows out", id="no rows"),
        pytest.param("fc.weight", (0.0, 2.0), "from 0 to 10", id="floats"),
        pytest.param("fc.weight", (0, 1, 2), "from 0 to 10", id="three"),
        pytest.param("fc.weight", "ab", "from 0 to 10", id="text"),
    ],
)
def test_rows_that_are_not_there_are_refused(name, rows, hint, refusal):
    problem = refusal(initial_values, builder.build(MODEL), name, rows=rows)
    assert problem.address == name
    assert f"rows {rows!r}" in problem.what
    assert hint in problem.hint


@pytest.mark.parametrize("seed", [-1, "x", True, 2**63, 1.0])
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda seed: builder.build(MODEL, seed=seed), id="build"),
        pytest.param(lambda seed: initialise(builder.build(MODEL), seed), id="initialise"),
        pytest.param(lambda seed: initial_values(prove(MODEL), "fc.weight", seed=seed), id="initial values"),
        pytest.param(lambda seed: builder.explain(prove(MODEL), "fc.weight", seed=seed), id="explain"),
    ],
)
def test_what_is_no_seed_is_refused(call, seed, refusal):
    problem = refusal(call, seed)
    assert (problem.address, f"seed {seed!r}" in problem.what) == ("init_seed", True)
    assert "a whole number, zero or more" in problem.hint


@pytest.mark.parametrize("call", [lambda built: initial_values(built, "fc.weight"), initialise], ids=["values", "all"])
def test_module_drawn_from_the_global_generator_is_refused(call, refusal):
    problem = refusal(call, builder.build(MODEL, rng="torch"))
    assert "rng: torch" in problem.what
    assert problem.hint == "build it with rng: keyed"


@pytest.mark.parametrize("call", [lambda module: initial_values(module, "weight"), initialise], ids=["values", "all"])
def test_module_that_builder_did_not_build_is_refused(call, refusal):
    assert "was not built by builder" in refusal(call, torch.nn.Linear(2, 2)).what


def test_values_of_a_classs_own_method_are_refused(refusal):
    problem = refusal(initial_values, builder.build(OWN, allow=["gate"]), "gate.scale")
    assert problem.address == "gate.scale"
    assert problem.what == "gets its initial values from Gate's own reset_parameters"
    assert "give it an init rule" in problem.hint
    ruled = builder.build({**OWN, "init": {"r": {"match": "gate.scale", "policy": "normal"}}}, allow=["gate"])
    assert torch.equal(initial_values(ruled, "gate.scale"), ruled.gate.scale)


# ---- materialised later --------------------------------------------------------------------------------------------


def test_module_from_meta_takes_no_memory_until_it_is_initialised():
    layer = {"kind": "Linear", "in_features": 10**5, "out_features": 9 * 10**5}
    module = builder.build({"inputs": {"x": {}}, "layers": {"fc": layer}, "forward": "x"}, device="meta")
    assert module.fc.weight.is_meta


def test_module_from_meta_gets_what_only_a_classs_own_method_fills():
    proof = prove(OWN, allow=["gate"])
    before = torch.get_rng_state()
    later = initialise(materialise(proof, seed=3, device="meta"))
    assert torch.equal(later.gate.scale, materialise(proof, seed=3).gate.scale)
    assert torch.equal(torch.get_rng_state(), before)


def test_initialise_takes_a_seed_of_its_own_and_writes_in_place():
    module = builder.build(MODEL, seed=3)
    weight = module.fc.weight
    assert initialise(module, seed=4) is module
    assert module.fc.weight is weight
    assert torch.equal(weight, builder.build(MODEL, seed=4).fc.weight)


def test_parameter_that_is_not_contiguous_gets_the_same_values():
    layer = {"kind": "Conv2d", "in_channels": 3, "out_channels": 4, "kernel_size": 5}
    data = {"inputs": {"x": {}}, "layers": {"conv": layer}, "forward": "x"}
    module = builder.build(data)
    expected = module.conv.weight.detach().clone()
    module.to(memory_format=torch.channels_last)
    assert not module.conv.weight.is_contiguous()
    assert torch.equal(initialise(module).conv.weight, expected)


def test_what_lsuv_decides_is_refused_without_a_batch(refusal):
    data = {**MODEL, "init": {"r": {"match": "fc.weight", "policy": "lsuv"}}}
    problem = refusal(initial_values, prove(data), "fc.weight")
    assert "lsuv, which looks at a batch" in problem.what
    assert "batch" in refusal(initialise, materialise(prove(data), device="meta")).hint


class Placed:
    """What a sharded parameter looks like from here."""

    device_mesh = None

    def __init__(self, *placements):
        self.placements = placements


class Partial:
    """A placement that is no part of a tensor: summands of it."""

    def __str__(self):
        return "Partial(sum)"


def test_shard_that_cannot_be_filled_is_refused_with_all_others():
    with pytest.raises(builder.BuilderError) as caught:
        check_shards(
            [
                ("a", None, Placed(Partial())),
                ("b", "Gate's own reset_parameters", Placed()),
                ("c", "Gate", torch.zeros(1)),
            ]
        )
    problems = {problem.address: problem for problem in caught.value.problems}
    assert problems.keys() == {"a", "b"}
    assert (problems["a"].what, "fill before you wrap" in problems["a"].hint) == ("is placed as Partial(sum)", True)
    assert "only Gate's own reset_parameters" in problems["b"].what


# ---- two processes -------------------------------------------------------------------------------------------------

WORKER = """
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
import builder
from builder import initialise

mesh = init_device_mesh("cpu", (2,))
drawn = {"kind": "Parameter", "axes": ["in", "out"]}
data = {
    "inputs": {"ids": {"shape": ["batch"], "dtype": "int64", "range": [0, 7]}},
    "layers": {
        "emb": {"kind": "Embedding", "num_embeddings": 7, "embedding_dim": 4, "padding_idx": 5},
        "fc": {"kind": "Linear", "in_features": 4, "out_features": 3},
        "w": {**drawn, "shape": [3, 4], "init": "orthogonal"},
        "deep": {**drawn, "shape": [2100, 256], "init": "trunc_normal"},
        "one": {**drawn, "shape": [1, 4], "init": "normal"},
        "place": {
            **drawn,
            "shape": [3, 4],
            "init": {"policy": "expression", "value": "=i0 + 10 * i1 + u", "draws": {"u": "normal"}},
        },
        "copy": {**drawn, "shape": [4, 3], "init": {"policy": "copy", "of": "w", "transpose": True}},
        "lstm": {"kind": "LSTM", "input_size": 4, "hidden_size": 3},
        "head": {"kind": "Linear", "in_features": 4, "out_features": 7, "bias": False},
    },
    "buffers": {"scale": {"value": "=1 / 3", "persistent": False}},
    "tie": {"head.weight": "emb.weight"},
    "forward": "head(fc(emb(ids)) @ w + one) * scale",
    "freeze": {"f": {"match": "fc.*"}},
}
whole = builder.build(data, seed=5)


def split_columns(module):  # tensor parallelism: each process holds some columns
    for name, parameter in list(module.named_parameters()):
        path, _, local = name.rpartition(".")
        placed = distribute_tensor(parameter.detach(), mesh, [Shard(1) if parameter.ndim > 1 else Replicate()])
        setattr(module.get_submodule(path), local, torch.nn.Parameter(placed, parameter.requires_grad))


def split_both(module):  # a mesh of two axes: replicas along one, and both axes of a matrix named
    both = init_device_mesh("cpu", (1, 2))
    for name, parameter in list(module.named_parameters()):
        path, _, local = name.rpartition(".")
        placements = [Shard(0), Shard(1) if parameter.ndim > 1 else Replicate()]
        placed = distribute_tensor(parameter.detach(), both, placements)
        setattr(module.get_submodule(path), local, torch.nn.Parameter(placed, parameter.requires_grad))


for how in ("sharded on meta", "sharded, then emptied", "columns", "rows of columns"):
    module = builder.build(data, seed=5, device="meta")
    if how == "columns":
        split_columns(module)
    elif how == "rows of columns":
        split_both(module)
    else:
        fully_shard(module.fc, mesh=mesh)
        fully_shard(module, mesh=mesh)
    if how == "sharded, then emptied":
        module.to_empty(device="cpu")
    initialise(module)
    for name, parameter in whole.named_parameters():
        sharded = module.get_parameter(name)
        some = sharded.to_local().numel() < parameter.numel() or parameter.ndim < 2 or name == "one"
        assert some, (how, name, "each process has a part, and the one row is with the first")
        assert torch.equal(sharded.full_tensor(), parameter), (how, name)
    assert module.head.weight is module.emb.weight, how
    assert torch.equal(module.scale, whole.scale), how
    if how.startswith("sharded"):
        ids = torch.arange(7)
        assert torch.equal(module(ids), whole(ids)), how
        module.reshard()
        before = {name: p.full_tensor().clone() for name, p in module.named_parameters()}
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)
        builder.hold_frozen(module, optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            module(ids).square().mean().backward()
            optimizer.step()
        after = {name: p.full_tensor() for name, p in module.named_parameters()}
        assert all(torch.equal(after[f"fc.{local}"], before[f"fc.{local}"]) for local in ("weight", "bias")), how
        assert not torch.equal(after["emb.weight"], before["emb.weight"]), how

data = {"inputs": {"x": {}}, "layers": {"gate": {"kind": "gate.Gate"}}, "forward": "x"}
module = builder.build(data, allow=["gate"], device="meta")
fully_shard(module, mesh=mesh)
try:
    initialise(module)
    raise SystemExit("a shard was filled by its class")
except builder.BuilderError as err:
    assert err.problems[0].address == "gate.scale", err
    assert "only Gate's own reset_parameters" in err.problems[0].what, err
    assert "give it an init rule" in err.problems[0].hint, err
dist.destroy_process_group()
"""


def test_shards_on_two_processes_are_the_parts_of_a_whole_build(two_processes):
    """`fully_shard` on meta, with and without `to_empty`, and shards that cut through rows."""
    two_processes(WORKER)
