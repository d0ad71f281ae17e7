"""Export: three files that rebuild a model with torch and safetensors alone, and what is refused on the way back."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

import builder
from builder import export
from builder.export import load_weights, save, save_weights
from builder.verify import verify

ROOT = Path(__file__).parents[2]
SMALL = {
    "args": {"d": 3, "hidden": "=2 * d"},
    "inputs": {"ids": {"shape": ["batch"], "dtype": "int64"}},
    "layers": {
        "wte": {"kind": "Embedding", "num_embeddings": 5, "embedding_dim": "=d"},
        "fc": {"kind": "Linear", "in_features": "=d", "out_features": "=hidden"},
        "norm": {"kind": "BatchNorm1d", "num_features": "=hidden"},
        "back": {"kind": "Linear", "in_features": "=hidden", "out_features": "=d"},
        "head": {"kind": "Linear", "in_features": "=d", "out_features": 5, "bias": False},
        "w": {"kind": "Parameter", "shape": ["=d", 5]},
    },
    "buffers": {
        "scale": {"value": "=arange(d) + 0.5", "persistent": False},
        "wide": {"value": "=ones(1).expand(d)"},
    },
    "tie": {"head.weight": "wte.weight", "w": {"source": "wte.weight", "transpose": True}},
    "freeze": {"back": {"match": "back.*"}},
    "forward": "x = back(norm(fc(wte(ids)))) * scale * wide\nreturn head(x) + x @ w",
}
IDS = torch.arange(5)


@pytest.fixture
def model():
    """A built module whose running statistics have moved."""
    made = builder.build(SMALL, args={"d": 4}, seed=3)
    made(IDS)
    return made


@pytest.fixture
def saved(model, tmp_path):
    save_weights(model, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_compiled_model_is_exported_loaded_and_told_as_the_model_itself(model, tmp_path):
    compiled = torch.compile(model, backend="eager")
    assert builder.parameters(compiled) == builder.parameters(model)
    save(model, tmp_path / "plain")
    save(compiled, tmp_path / "compiled")
    for name in ("model.py", "parameters.json"):
        assert (tmp_path / "compiled" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    weights = [load_file(tmp_path / folder / "weights.safetensors") for folder in ("compiled", "plain")]
    assert weights[0].keys() == weights[1].keys()
    other = torch.compile(builder.build(SMALL, args={"d": 4}, seed=4), backend="eager")
    load_weights(other, tmp_path / "plain")
    model.eval(), other.eval()
    assert torch.equal(other(IDS), model(IDS))
    assert torch.equal(
        builder.initial_values(other, "wte.weight"), builder.initial_values(other._orig_mod, "wte.weight")
    )
    assert builder.initialise(other) is other
    assert torch.equal(other.wte.weight, builder.initial_values(other, "wte.weight"))


def test_compiled_model_keeps_its_frozen_rows():
    model = builder.build(SMALL, freeze={"rows": {"match": "wte.weight", "rows": [0, 2]}})
    compiled = torch.compile(model, backend="eager")
    before = model.wte.weight.detach().clone()
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=0.1, weight_decay=0.1)
    builder.hold_frozen(compiled, optimizer)
    compiled(IDS).square().sum().backward()
    optimizer.step()
    assert (model.wte.weight == before).all(dim=1).tolist() == [True, True, False, False, False]


def changed(file, change):
    """The same file after a change to its tensors."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return file


# ---- what is written -----------------------------------------------------------------------------------------------


def test_export_is_three_files_in_which_a_tie_stands_once(model, tmp_path):
    save(model, tmp_path / "made" / "here")
    assert sorted(file.name for file in (tmp_path / "made" / "here").iterdir()) == [
        "model.py", "parameters.json", "weights.safetensors",
    ]  # fmt: skip
    with safe_open(tmp_path / "made" / "here" / "weights.safetensors", "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert names == set(model.state_dict()) - {"head.weight"}
    assert (metadata["format"], metadata["model"]) == ("pt", "Model")
    assert json.loads(metadata["ties"]) == {
        "head.weight": {"source": "wte.weight", "transpose": False},
        "w": {"source": "wte.weight", "transpose": True},
    }


def test_exported_source_has_the_args_of_the_build_as_defaults(model, tmp_path):
    save(model, tmp_path)
    namespace = {}
    exec((tmp_path / "model.py").read_text(), namespace)
    assert namespace["Model"]().fc.weight.shape == (8, 4)


def test_exported_table_is_that_of_the_module(model, tmp_path):
    save(model, tmp_path)
    rows = json.loads((tmp_path / "parameters.json").read_text())["parameters"]
    assert [row["name"] for row in rows] == [row.name for row in builder.parameters(model)]
    assert [row["name"] for row in rows if row["frozen_by"]] == ["back.weight", "back.bias"]


def test_transposed_memory_is_written_in_order(model, tmp_path):
    values = torch.randn(5, 4)
    model.wte.weight.data = values.T.contiguous().T
    assert not model.wte.weight.is_contiguous()
    save_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(load_file(tmp_path / "w.safetensors")["wte.weight"], values)


def test_interrupted_export_leaves_the_old_file_and_no_other(model, saved, monkeypatch):
    before = saved.read_bytes()

    def stops(tensors, file, metadata):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "save_file", stops)
    with pytest.raises(KeyboardInterrupt):
        save_weights(model, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_file_is_on_the_disk_before_it_has_its_name(model, tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("fsync"), fsync(file))[1])
    monkeypatch.setattr(os, "replace", lambda part, file: (done.append(Path(part).parent), replace(part, file))[1])
    save_weights(model, tmp_path / "w.safetensors")
    assert done == ["fsync", tmp_path, "fsync"], "the file, its name, the folder"


def parted(model):
    model.head.weight = torch.nn.Parameter(model.wte.weight.detach().clone())


def shared(model):
    model.fc.bias = torch.nn.Parameter(torch.zeros(8))
    model.norm.bias = model.fc.bias


@pytest.mark.parametrize(
    ("spoil", "address", "what", "hint"),
    [
        pytest.param(parted, "head.weight", "no longer tied to 'wte.weight'", "assign it again", id="a parted tie"),
        pytest.param(lambda m: m.to("meta"), "wte.weight", "has no memory", "load its weights", id="no memory"),
        pytest.param(lambda m: m.double(), "wide", "is torch.float64, and the source makes torch.float32",
                     "convert it after export", id="another dtype"),
        pytest.param(lambda m: m.register_parameter("extra", torch.nn.Parameter(torch.zeros(1))), "extra",
                     "its source makes no such tensor", "has to declare", id="a parameter of somebody else"),
        pytest.param(lambda m: m.register_buffer("extra", torch.zeros(1)), "extra", "its source makes no such tensor",
                     "has to declare", id="a buffer of somebody else"),
        pytest.param(lambda m: delattr(m, "fc"), "fc.weight", "is gone from the module", "has to declare",
                     id="a layer taken out"),
        pytest.param(lambda m: setattr(m.fc, "bias", torch.nn.Parameter(torch.zeros(3))), "fc.bias",
                     "is (3,), and the source makes (8,)", "has to declare", id="another shape"),
        pytest.param(shared, "norm.bias", "shares memory with 'fc.bias', and no tie says so",
                     "declare tie: {norm.bias: fc.bias}", id="a tie that is not declared"),
    ],
)  # fmt: skip
def test_export_of_a_spoilt_module_is_refused(model, spoil, address, what, hint, tmp_path, refusal):
    spoil(model)
    problem = refusal(save, model, tmp_path)
    assert problem.address == address
    assert what in problem.what
    assert hint in problem.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/inside"])
def test_place_that_cannot_be_written_is_refused(model, place, tmp_path, refusal):
    (tmp_path / "file").write_text("of somebody else")
    problem = refusal(save, model, tmp_path / place)
    assert problem.address == str(tmp_path / place / "weights.safetensors")
    assert "cannot be written: " in problem.what
    assert problem.hint == "choose another place"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "of somebody else"


def test_full_disk_is_refused_and_leaves_the_old_file(model, saved, monkeypatch, refusal):
    def full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(export, "save_file", full)
    assert "No space left on device" in refusal(save_weights, model, saved).what
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_module_of_somebody_else_is_neither_exported_nor_loaded(tmp_path, refusal, saved):
    for call, target in ((save, tmp_path / "new"), (load_weights, saved)):
        assert refusal(call, torch.nn.Linear(1, 1), target).what == "was not built by builder"


# ---- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_meta", [False, True])
def test_weights_come_back_with_ties_frozen_state_and_every_buffer(model, saved, on_meta):
    other = builder.build(SMALL, args={"d": 4}, seed=8)
    other.scale.fill_(9)
    if on_meta:
        other.to("meta")
    load_weights(other, saved.parent)
    verify(other)
    assert other.head.weight is other.wte.weight
    assert not other.back.weight.requires_grad
    assert {name: t.tolist() for name, t in other.state_dict().items()} == {
        name: t.tolist() for name, t in model.state_dict().items()
    }
    assert torch.equal(other.eval()(IDS), model.eval()(IDS))


def test_module_made_from_a_file_does_not_change_with_the_file(model, saved):
    other = builder.build(SMALL, args={"d": 4}).to("meta")
    load_weights(other, saved)
    before = other.wte.weight.clone()
    with saved.open("r+b") as file:
        file.seek(-20, os.SEEK_END)
        file.write(b"\xff" * 20)
    assert torch.equal(other.wte.weight, before)
    assert all(tensor.isfinite().all() for tensor in other.state_dict().values())


def test_file_may_name_a_tied_value_by_its_alias(model, saved):
    changed(saved, lambda t: t.update({"head.weight": t.pop("wte.weight") + 1}))
    before = model.wte.weight.detach().clone()
    load_weights(model, saved)
    assert torch.equal(model.wte.weight, before + 1)
    verify(model)


def longer(file):
    """A header that claims more than the file has."""
    text = file.read_bytes()
    file.write_bytes(text.replace(b"[5,4]", b"[9,4]"))
    return file


def cut(file):
    file.write_bytes(file.read_bytes()[:-9])
    return file


def renamed(tensors):
    for name in list(tensors):
        tensors[f"model.{name}"] = tensors.pop(name)


@pytest.mark.parametrize(
    ("spoil", "address", "what", "hint"),
    [
        pytest.param(lambda f: f.with_name("weight.safetensors"), "weights", "no such file", "weights.safetensors",
                     id="a missing file"),
        pytest.param(longer, "weights", "is not a safetensors file", "again", id="a header that lies"),
        pytest.param(cut, "weights", "is not a safetensors file", "again", id="a file that was cut"),
        pytest.param(lambda f: changed(f, renamed), "weights",
                     "none of its 11 names is the model's: model.back.bias", "the model has: wide, wte.weight",
                     id="names with a prefix"),
        pytest.param(lambda f: changed(f, lambda t: t.pop("fc.bias")), "fc.bias", "is missing from the file", "",
                     id="a missing parameter"),
        pytest.param(lambda f: changed(f, lambda t: t.pop("wte.weight")), "wte.weight", "is missing from the file", "",
                     id="a tie that is missing under both names"),
        pytest.param(lambda f: changed(f, lambda t: t.update(fc_bias=t.pop("fc.bias"))), "fc_bias",
                     "the model has no such name", "did you mean 'fc.bias'", id="a misspelt name"),
        pytest.param(lambda f: changed(f, lambda t: t.update({"fc.bias": torch.zeros(7)})), "fc.bias",
                     "is (7,) in the file and (8,) in the model", "the args that the file was made with",
                     id="another shape"),
        pytest.param(lambda f: changed(f, lambda t: t.update({"fc.bias": torch.zeros(8).double()})), "fc.bias",
                     "is torch.float64 in the file and torch.float32 in the model", "convert", id="another dtype"),
        pytest.param(lambda f: changed(f, lambda t: t.update({"head.weight": t["wte.weight"] + 1})), "head.weight",
                     "is tied to 'wte.weight', and the state_dict has other values for it", "take 'head.weight' out",
                     id="two values for a tie"),
    ],
)  # fmt: skip
def test_file_that_does_not_fit_is_refused_and_changes_nothing(model, saved, spoil, address, what, hint, refusal):
    file = spoil(saved)
    other = builder.build(SMALL, args={"d": 4}, seed=8)
    before = copy.deepcopy(other.state_dict())
    problem = refusal(load_weights, other, file)
    assert problem.address == address
    assert what in problem.what
    assert hint in problem.hint
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


# ---- without builder -----------------------------------------------------------------------------------------------


def snippet():
    """The lines of the README that rebuild a model."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if "load_file" in block]
    return found


BEFORE = """
import sys
sys.modules["builder"] = None  # an import of it fails
"""
AFTER = """
import torch
ids = torch.load("ids.pt")
frozen = sorted(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
model.eval()
torch.save({"out": model(ids), "tied": model.head.weight is model.wte.weight, "frozen": frozen}, "out.pt")
"""


def test_lines_of_the_readme_rebuild_a_model_without_builder(tmp_path):
    freeze = {"positions": {"match": "wpe.*"}, "first": {"match": "h.0.*", "except": "*.bias"}}
    model = builder.build(ROOT / "conf" / "model" / "gpt.yaml", args={"d": 32}, freeze=freeze, seed=4)
    ids = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(0))
    moves = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model(ids).square().mean().backward()
    moves.step()
    save(model, tmp_path)
    torch.save(ids, tmp_path / "ids.pt")
    command = [sys.executable, "-c", BEFORE + snippet() + AFTER]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "out.pt")
    assert torch.equal(found["out"], model.eval()(ids))
    assert found["tied"]
    assert found["frozen"] == sorted(name for name, p in model.named_parameters() if not p.requires_grad)
    assert found["frozen"][-1] == "wpe.weight"
    assert len([line for line in snippet().splitlines() if line]) == 10
