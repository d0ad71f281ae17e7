"""Laws L6 and L7: tied stays tied, and buffers are saved if and only if persistent."""

import copy
import io
import json
import math
import multiprocessing
import pickle
import subprocess
import sys
import tempfile

import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from random_models import MATRIX, PIECES, D, batch, models

import builder
from builder.buffers import restore_buffers
from builder.build import proof_of
from builder.export import load_weights, save_weights
from builder.initialize.fill import initialise
from builder.meta import on_meta
from builder.module import construct, entries
from builder.source import render
from builder.verify import check_module, verify

examples = settings(max_examples=200, deadline=None, derandomize=True)
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}


def step(model, optimizer, seed=0):
    """One step of training on a batch, dropout drawn from a seed."""
    torch.manual_seed(seed)
    optimizer.zero_grad()
    model(**batch(seed)).square().mean().backward()
    optimizer.step()


def cleared(model):
    """A copy in which everything that a file can hold is zero."""
    other = copy.deepcopy(model)
    for tensor in other.state_dict().values():
        tensor.zero_()
    return other


# ---- L6 over random models -----------------------------------------------------------------------------------------


@st.composite
def tied_models(draw):
    """A random model in which a matrix has two more names: `alias.weight`, and its transpose `turned`."""
    data = draw(models(most=3))
    plain, _ = PIECES["plain"]
    data["layers"] |= {"own": plain, "alias": plain, "turned": {"kind": "Parameter", "shape": MATRIX["shape"]}}
    turned = {"source": "own.weight", "transpose": True}
    data["tie"] = {**data.get("tie", {}), "alias.weight": "own.weight", "turned": turned}
    data["forward"] += " + alias(own(x)) + x @ turned"
    return data


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def load(model, *, assign=False, without=()):
    other = cleared(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in without}
    other.load_state_dict(state, assign=assign)
    return other


def through_safetensors(model, target):
    with tempfile.TemporaryDirectory() as directory:
        save_weights(model, f"{directory}/weights.safetensors")
        load_weights(target, directory)
    return target


def through_meta(model):
    emptied = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    with pytest.raises(builder.BuilderError, match=r"alias\.weight: is no longer tied to 'own\.weight'"):
        verify(emptied)
    initialise(emptied, 7)
    return emptied


WAYS = {
    "nothing": lambda model: model,
    "to": lambda model: model.to(torch.float64).to(torch.float32),
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_torch_save,
    "load": load,
    "load with assign": lambda model: load(model, assign=True),
    "load of owners": lambda model: load(model, without=proof_of(model).ties),
    "load of owners with assign": lambda model: load(model, assign=True, without=proof_of(model).ties),
    "load of aliases": lambda model: load(model, without=set(proof_of(model).ties.values())),
    "safetensors": lambda model: through_safetensors(model, cleared(model)),
    "safetensors to meta": lambda model: through_safetensors(model, copy.deepcopy(model).to("meta")),
    "materialisation from meta": through_meta,
}


@examples
@for_all(
    data=tied_models(),
    ways=st.lists(st.sampled_from(sorted(WAYS)), min_size=1, max_size=3),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
)
def test_tied_is_one_parameter_after_all_that_a_model_goes_through(data, ways, optimizer):
    model = builder.build(data, seed=7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for way in ways:
        model = WAYS[way](model)
        verify(model)
    assert model.alias.weight is model.own.weight
    assert torch.equal(model.turned, model.own.weight.T)
    assert {name: tensor.tolist() for name, tensor in model.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in before.items()
    }
    table = [row for row in builder.parameters(model) if row.kind != "buffer"]
    assert sum(row.numel for row in table) == sum(p.numel() for p in model.parameters())
    assert len(list(model.parameters())) == len([row for row in table if row.tied_to is None])

    namespace = {}
    exec(proof_of(model).source.text, namespace)  # the hand-written module, which ties in plain torch
    twin = namespace[proof_of(model).source.class_name]()
    twin.load_state_dict(before)
    for one in (model, twin):
        moves = OPTIMIZERS[optimizer](one.parameters())
        for seed in range(2):
            step(one, moves, seed)
    verify(model)
    assert not torch.equal(model.own.weight, before["own.weight"])
    for name, tensor in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), f"{name} was optimised as in the plain module"


# ---- L6 where processes, compilers and sharding come in ------------------------------------------------------------

TIED = {
    "inputs": {"ids": {"shape": ["batch"], "dtype": "int64"}},
    "layers": {
        "a": {"kind": "Embedding", "num_embeddings": 8, "embedding_dim": 4},
        "b": {"kind": "Linear", "in_features": 4, "out_features": 8, "bias": False},
        "w": {"kind": "Parameter", "shape": [4, 8]},
    },
    "buffers": {"scale": {"value": "=arange(4) + 1.0", "persistent": False}},
    "tie": {"b.weight": "a.weight", "w": {"source": "a.weight", "transpose": True}},
    "forward": "x = a(ids) * scale\nreturn b(x) + x @ w",
}
IDS = torch.arange(8)


@pytest.mark.parametrize("rng", ["keyed", "torch"])
def test_tied_weight_is_counted_once_in_the_table(rng, given):
    model = builder.build(given(TIED), rng=rng)
    assert model.a.weight is model.b.weight
    rows = {row.name: row for row in builder.parameters(model)}
    assert [(rows[name].numel, rows[name].tied_to) for name in ("a.weight", "b.weight", "w")] == [
        (32, None), (0, "a.weight"), (0, "a.weight"),
    ]  # fmt: skip
    assert [(rows[name].transposed, rows[name].persistent, rows[name].shape) for name in ("b.weight", "w")] == [
        (False, True, (8, 4)), (True, False, (4, 8)),
    ]  # fmt: skip
    assert set(model.state_dict()) == {"a.weight", "b.weight"}


def test_tied_owner_has_the_values_that_it_has_untied():
    layers = {**TIED["layers"], "w": {**TIED["layers"]["w"], "init": "normal"}}
    untied = builder.build({**TIED, "layers": layers, "tie": {}})
    assert torch.equal(builder.build(TIED).a.weight, untied.a.weight)


IN_ANOTHER_PROCESS = """
import pickle, sys, torch
def hook(module, incompatible): pass
model = pickle.load(sys.stdin.buffer)
from builder.verify import verify
verify(model)
for _ in range(max(model._load_state_dict_post_hooks) + 1):  # none may take the place of the model's own
    model.register_load_state_dict_post_hook(hook)
model.load_state_dict({"a.weight": torch.ones(8, 4)}, assign=True)
verify(model)
assert model.b.weight is model.a.weight and model.a.weight.sum() == 32 and not model.a.weight.requires_grad
again = pickle.loads(pickle.dumps(model))
assert type(again) is type(model) and type(again).__name__ == "Model"
verify(again)
assert again(torch.arange(8)).sum() == 1280
"""


def test_pickle_goes_to_a_process_that_never_saw_the_model_file():
    model = builder.build(TIED, freeze={"all": {"match": "*"}})
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS]
    done = subprocess.run(command, input=pickle.dumps(model), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()


def test_model_is_handed_to_a_spawned_process():
    process = multiprocessing.get_context("spawn").Process(target=verify, args=(builder.build(TIED),))
    process.start()
    try:
        process.join(120)
        assert process.exitcode == 0
    finally:
        process.kill()


def test_class_derived_from_a_generated_one_is_pickled_as_itself(monkeypatch):
    derived = type("Derived", (type(builder.build(TIED)),), {"__module__": __name__})
    monkeypatch.setattr(sys.modules[__name__], "Derived", derived, raising=False)
    assert type(pickle.loads(pickle.dumps(derived()))) is derived


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_model_keeps_its_tie_and_moves_it_as_one(backend):
    model, plain = builder.build(TIED), builder.build(TIED)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    for one in (compiled, plain):
        moves = OPTIMIZERS["AdamW"](one.parameters())
        for _ in range(2):
            moves.zero_grad()
            one(IDS).square().mean().backward()
            moves.step()
    verify(compiled)
    assert model.a.weight is model.b.weight
    assert torch.allclose(model.a.weight, plain.a.weight, rtol=0, atol=1e-6)
    assert torch.allclose(compiled(IDS), plain(IDS), rtol=0, atol=1e-6)


SHARDED = """
import json, os, torch
from torch.distributed.fsdp import fully_shard
import builder
from builder.export import load_weights
from builder.verify import verify
data = json.load(open(f"{folder}/model.json"))
ids = torch.arange(8)
model, plain = builder.build(data), builder.build(data)
whole = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
fully_shard(model)  # both names in one group
verify(model)
for one in (model, plain):
    moves = torch.optim.AdamW(one.parameters(), lr=0.01, weight_decay=0.1)
    assert len([p for group in moves.param_groups for p in group["params"]]) == 1
    for _ in range(2):
        moves.zero_grad()
        one(ids).square().mean().backward()
        moves.step()
verify(model)
assert model.a.weight is model.b.weight
assert model.a.weight.to_local().shape == (4, 4), "each process has half"
assert torch.allclose(model.a.weight.full_tensor(), plain.a.weight, rtol=0, atol=1e-6)
model.load_state_dict(model.state_dict())
model.load_state_dict({k: v for k, v in model.state_dict().items() if k != "b.weight"}, assign=True)
verify(model)
builder.save(model, f"{folder}/rank{rank}")  # gathered by all, written by the first
written = os.path.exists(f"{folder}/rank{rank}")
assert written == (rank == 0), "one process writes"
dist.barrier()
again = builder.build(data, seed=9)
load_weights(again, f"{folder}/rank0")
assert torch.equal(again.a.weight, model.a.weight.full_tensor())
assert sorted(os.listdir(f"{folder}/rank0")) == ["model.py", "parameters.json", "weights.safetensors"]
apart = builder.build(data)
fully_shard(apart.a)
fully_shard(apart)
try:
    verify(apart)
    raise SystemExit("a parted tie was not seen")
except builder.BuilderError as err:
    assert [p.address for p in err.problems] == ["b.weight"], err
dist.destroy_process_group()
"""


def test_fully_sharded_model_keeps_its_tie_on_two_processes(tmp_path, two_processes):
    (tmp_path / "model.json").write_text(json.dumps(TIED))
    two_processes(SHARDED)


# ---- ties: what is refused and what is reported --------------------------------------------------------------------

LAYER = {"kind": "Linear", "in_features": 2, "out_features": 2, "bias": False}


def test_chain_of_ties_ends_at_one_owner_in_any_order():
    data = {"inputs": {"x": {}}, "layers": {"a": LAYER, "b": LAYER, "c": LAYER}}
    for order in (("a", "b"), ("b", "a")):
        ties = {"a": {"a.weight": "b.weight"}, "b": {"b.weight": "c.weight"}}
        chained = {**data, "tie": {k: v for name in order for k, v in ties[name].items()}}
        model = builder.build(chained)
        assert model.a.weight is model.b.weight is model.c.weight
        assert builder.code(chained) == proof_of(model).source.text, "what is printed is what runs"


def test_transpose_of_a_transpose_is_the_owner_itself():
    raw = {"kind": "Parameter", "shape": [4, 8]}
    layers = {**TIED["layers"], "w": raw, "v": {"kind": "Parameter", "shape": [8, 4]}}
    tie = {"v": {"source": "w", "transpose": True}, **TIED["tie"]}
    model = builder.build({**TIED, "layers": layers, "tie": tie, "forward": "w + v.T"})
    assert model.v is model.a.weight
    assert torch.equal(model.w, model.a.weight.T)


def test_transpose_is_one_entry_whether_it_is_tied_yet_or_not():
    proof = proof_of(builder.build(TIED))
    source, _ = render(proof.loaded.spec, ties=False)
    untied = construct(proof.loaded, source, proof.expansion.args, on_meta)
    found = [[entry.name for entry in entries(module, proof.expansion)] for module in (untied, proof.meta)]
    assert found == [["a.weight", "b.weight", "w"]] * 2


def transposed(shape=(3, 2), *, tie=None, **change):
    w = {"kind": "Parameter", "shape": list(shape)}
    fc = {"kind": "Linear", "in_features": 3, "out_features": 2}
    tie = {"w": {"source": "fc.weight", "transpose": True}} if tie is None else tie
    return {"inputs": {"x": {}}, "layers": {"fc": fc, "w": w}, "tie": tie, "forward": "x @ w", **change}


@pytest.mark.parametrize(
    ("data", "address", "what", "hint"),
    [
        pytest.param(
            transposed((2, 3)), "tie.w", "'w' is (2, 3) but the transpose of 'fc.weight' is (3, 2)", "equal shapes",
            id="a shape that is not transposed",
        ),
        pytest.param(
            transposed(tie={"w": {"source": "fc.bias", "transpose": True}}), "tie.w", "of shape (2,) has no transpose",
            "two dimensions", id="an owner of one dimension",
        ),
        pytest.param(
            transposed(tie={"fc.weight": {"source": "w", "transpose": True}}), "tie.fc.weight",
            "only a raw Parameter of the model's own layers can", "write `x @ w.T` in forward",
            id="a layer's own parameter",
        ),
        pytest.param(
            transposed(layers={"fc": LAYER, "w": {"kind": "Parameter", "shape": [2, 2], "repeat": 2}}), "tie.w",
            "only a raw Parameter", "write `x @ fc.weight.T` in forward", id="a repeated Parameter",
        ),
        pytest.param(
            transposed(layers={"fc": LAYER, "w": {"kind": "Parameter", "shape": [2, 2], "dtype": "float64"}}), "tie.w",
            "'w' is torch.float64 but 'fc.weight' is torch.float32", "equal dtypes", id="another dtype",
        ),
        pytest.param(
            transposed(layers={"fc": LAYER, "w": {"kind": "Parameter", "shape": [2, 2], "init": "normal"}}),
            "layers.w.init", "'w' is tied to 'fc.weight'", "give 'fc.weight' the init", id="an init of the transpose",
        ),
        pytest.param(
            transposed(init={"r": {"match": "w", "policy": "zeros"}}), "init.r", "'w' is tied to 'fc.weight'",
            "'fc.weight'", id="an init rule of the transpose",
        ),
        pytest.param(
            transposed(freeze={"f": {"match": "w"}}), "freeze.f", "'w' is tied to 'fc.weight'", "'fc.weight'",
            id="a freeze rule of the transpose",
        ),
        pytest.param(
            transposed(tie={"w": {"source": "w", "transpose": True}}), "tie.w", "a cycle: w -> w", "remove its tie",
            id="a tie to itself",
        ),
        pytest.param(
            transposed(tie={"w": {"source": "fc.weigth", "transpose": True}}), "tie.w", "no parameter 'fc.weigth'",
            "did you mean 'fc.weight'", id="an unknown owner",
        ),
        pytest.param(
            transposed(tie={"w": {"source": "fc.weight", "transposed": True}}), "tie.w.transposed",
            "unknown key 'transposed'", "did you mean 'transpose'", id="a misspelt key",
        ),
        pytest.param(
            transposed(tie={"w": {"transpose": True}}), "tie.w.source", "'source' is missing", "give source",
            id="no owner",
        ),
        pytest.param(
            transposed(tie={"w": {"source": "fc.weight", "transpose": "yes please"}}), "tie.w.transpose", "boolean", "",
            id="a transpose that is text",
        ),
        pytest.param(transposed(tie={"w": 3}), "tie.w", "3 is a int", "{source: NAME", id="a tie that is a number"),
    ],
)  # fmt: skip
def test_wrong_tie_is_refused(data, address, what, hint, given, refusal):
    problem = refusal(builder.build, given(data))
    assert problem.address == address
    assert what in problem.what
    assert hint in problem.hint


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(transposed(tie={"fc.weight": {"source": "w", "transpose": True}}), id="a transposed layer"),
        pytest.param({**TIED, "tie": {"a.weight": "b.weight", "b.weight": "a.weight"}}, id="a cycle"),
    ],
)
def test_source_of_a_wrong_tie_is_not_printed(data, given, refusal):
    assert refusal(builder.code, given(data)).address.startswith("tie.")


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_with_two_values_for_one_parameter_is_refused_by_name_and_changes_nothing(assign):
    model = builder.build(TIED)
    before = model.a.weight.clone()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["b.weight"][3, 1] += 1
    with pytest.raises(builder.BuilderError) as caught:
        torch.nn.Sequential(model).load_state_dict({f"0.{k}": v for k, v in state.items()}, assign=assign)
    (problem,) = caught.value.problems
    assert (problem.address, problem.what) == (
        "0.b.weight", "is tied to '0.a.weight', and the state_dict has other values for it",
    )  # fmt: skip
    assert "take '0.b.weight' out" in problem.hint
    assert torch.equal(model.a.weight, before)
    verify(model)


def test_state_dict_that_is_not_a_number_on_both_sides_is_one_value():
    model = builder.build(TIED)
    model.load_state_dict({name: torch.full((8, 4), math.nan) for name in ("a.weight", "b.weight")})
    assert model.a.weight.isnan().all()


def test_key_that_is_missing_or_too_many_is_still_refused_when_loading():
    model = builder.build(TIED)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({"a.weight": torch.zeros(8, 4), "c": torch.zeros(1)})


def test_parted_tie_and_thawed_parameter_are_reported_by_name():
    model = builder.build(TIED, freeze={"all": {"match": "*"}})
    verify(torch.nn.Sequential(model))
    model.b.weight = torch.nn.Parameter(model.a.weight.detach().clone())
    model.a.weight.requires_grad_(True)
    with pytest.raises(builder.BuilderError) as caught:
        verify(model)
    assert [p.address for p in caught.value.problems] == ["b.weight", "a.weight"]
    assert "no longer tied to 'a.weight'" in caught.value.problems[0].what
    assert "leave requires_grad" in caught.value.problems[1].hint


def test_each_of_several_built_models_is_verified_under_its_path():
    pair = torch.nn.ModuleDict({"student": builder.build(TIED), "teacher": builder.build(TIED)})
    verify(pair)
    pair.teacher.b.weight = torch.nn.Parameter(torch.zeros(8, 4))
    with pytest.raises(builder.BuilderError) as caught:
        verify(pair)
    assert [p.address for p in caught.value.problems] == ["teacher.b.weight"]


def test_module_on_meta_is_reported(refusal):
    problem = refusal(check_module, torch.nn.Linear(1, 1, device="meta"), {}, [])
    assert (problem.address, problem.what) == ("weight", "has no memory: it is on meta")
    assert "load its weights" in problem.hint


def test_module_of_somebody_else_is_not_verified(refusal):
    assert refusal(verify, torch.nn.Linear(1, 1)).what == "was not built by builder"


# ---- L7 over random models -----------------------------------------------------------------------------------------


@st.composite
def buffered_models(draw):
    """A random model with a counter, a table in each of two blocks, and running statistics; and what it declares."""
    data = draw(models(most=2))
    saved = {name: draw(st.booleans()) for name in ("count", "table")}
    counted = {"value": 3, "dtype": "int64", "persistent": saved["count"]}
    data["buffers"]["count"] = counted
    inner = {
        "args": ["n"],
        "inputs": ["x"],
        "layers": {"norm": {"kind": "BatchNorm1d", "num_features": "=n"}},
        "buffers": {"table": {"value": "=cos(arange(n) * pi / n)", "persistent": saved["table"]}},
        "forward": "norm(x) * table",
    }
    data["blocks"] = {**data.get("blocks", {}), "Inner": inner}
    data["layers"]["inner"] = {"kind": "Inner", "n": "=d", "repeat": 2}
    data["forward"] = f"count += 1\nreturn {data['forward']} + inner[1](inner[0](x))"
    persistent = {name: buffer["persistent"] for name, buffer in data["buffers"].items()}
    return data, persistent | {f"inner.{i}.table": saved["table"] for i in range(2)}


@examples
@for_all(
    drawn=buffered_models(),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    way=st.sampled_from(["deepcopy", "pickle", "torch.save"]),
    assign=st.booleans(),
)
def test_buffer_is_saved_iff_persistent_moves_is_not_optimised_and_is_recomputed(drawn, optimizer, way, assign):
    data, persistent = drawn
    model = builder.build(data)
    declared = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert torch.equal(declared["inner.1.table"], torch.cos(torch.arange(D) * math.pi / D))
    assert declared["count"].item() == 3
    unsaved = {name for name, kept in persistent.items() if not kept}
    assert declared.keys() - model.state_dict().keys() == unsaved
    rows = {row.name: row.persistent for row in builder.parameters(model) if row.kind == "buffer"}
    assert rows == {name: name not in unsaved for name in declared}

    moves = OPTIMIZERS[optimizer](model.parameters())
    moved = {id(p) for group in moves.param_groups for p in group["params"]}
    assert not moved & {id(buffer) for buffer in model.buffers()}
    step(model, moves)
    assert model.count.item() == 4, "updated in forward"
    trained = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert all(torch.equal(trained[name], declared[name]) for name in persistent if name != "count")

    model = WAYS[way](model)
    model.to(torch.float64)
    assert all(b.dtype is (torch.float64 if b.is_floating_point() else torch.int64) for b in model.buffers())
    assert dict(model.named_buffers()).keys() == declared.keys()
    model.to(torch.float32)

    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = copy.deepcopy(model).to("meta") if assign else cleared(model)
    other.load_state_dict(state, assign=assign)
    after = dict(other.named_buffers())
    expected = {name: (declared if name in unsaved else trained)[name] for name in declared}
    assert all(torch.equal(after[name], value) for name, value in expected.items()), "after a load"
    assert dict(other.state_dict()).keys() == state.keys()

    emptied = other.to("meta").to_empty(device="cpu")
    for buffer in emptied.buffers():
        buffer.fill_(99)
    initialise(emptied, 0)
    assert all(torch.equal(b, declared[name]) for name, b in emptied.named_buffers()), "after materialisation"


# ---- buffers, one by one -------------------------------------------------------------------------------------------

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


def test_restored_buffer_keeps_its_memory_and_dtype():
    data = {**BUFFERS, "layers": {**BUFFERS["layers"], "norm": {"kind": "BatchNorm1d", "num_features": 6}}}
    model = builder.build(data).to(torch.float16)
    model.register_buffer("of_the_user", torch.ones(1))
    before = {name: buffer.data_ptr() for name, buffer in model.named_buffers()}
    for buffer in model.buffers():
        buffer.fill_(5)
    restore_buffers(model)
    assert {name: buffer.data_ptr() for name, buffer in model.named_buffers()} == before
    assert torch.equal(model.saved, (torch.arange(6) / 6).half())
    assert (model.norm.running_var == 1).all()
    assert model.norm.running_var.dtype is torch.float16
    assert model.of_the_user.item() == 5, "not declared, so left alone"


class Rotated(torch.nn.Module):
    """A class of somebody else that draws, and has a buffer that no file holds."""

    def __init__(self, n):
        super().__init__()
        self.fc = torch.nn.Linear(n, n)
        self.register_buffer("angles", torch.arange(float(n)), persistent=False)

    def forward(self, x):
        return self.fc(x) + self.angles


def test_buffer_of_a_class_that_the_caller_allows_is_restored_and_nothing_is_drawn():
    layers = {"fc": {"kind": f"{__name__}.Rotated", "n": "=n"}}
    model = builder.build({**BUFFERS, "layers": layers}, allow=[__name__]).to(torch.float16).to("meta")
    generator = torch.get_rng_state()
    restore_buffers(model)
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.fc.angles.dtype is torch.float16
    assert torch.equal(model.fc.angles, torch.arange(6).half())


def test_restoring_spends_no_memory_on_parameters(monkeypatch):
    model = builder.build(BUFFERS)
    seen = []
    register = torch.nn.Module.register_parameter

    def watched(self, name, parameter):
        seen.append(parameter.device.type)
        register(self, name, parameter)

    monkeypatch.setattr(torch.nn.Module, "register_parameter", watched)
    restore_buffers(model)
    assert set(seen) == {"meta"}


@pytest.mark.parametrize("value", ["=zeros(1).expand(6)", "=broadcast_to(zeros(1), [6])"])
def test_buffer_that_was_expanded_is_updated_loaded_and_restored(value, given):
    data = {**BUFFERS, "buffers": {"wide": {"value": value}}, "forward": "wide = wide + x[0]\nreturn fc(x)"}
    model = builder.build(given(data))
    model(torch.arange(6.0)[None])
    assert model.wide.tolist() == list(range(6))
    model.load_state_dict({**model.state_dict(), "wide": torch.full((6,), 5.0)})
    assert model.wide.tolist() == [5.0] * 6
    restore_buffers(model)
    assert model.wide.tolist() == [0.0] * 6


def test_buffer_of_a_layer_class_has_the_dtype_of_the_layer():
    norm = {"kind": "BatchNorm1d", "num_features": 6, "dtype": "float64"}
    model = builder.build({**BUFFERS, "layers": {**BUFFERS["layers"], "norm": norm}})
    model.to("meta").to_empty(device="cpu")
    restore_buffers(model)
    assert torch.equal(model.norm.running_var, torch.ones(6, dtype=torch.float64))
