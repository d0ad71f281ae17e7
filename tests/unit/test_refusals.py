"""Wrong model files: each is refused with the address, the cause and the remedy, for a dict and for a DictConfig."""

import pytest

import builder
from builder.load import read_file

L = {"kind": "Linear", "in_features": 2, "out_features": 2}
W = {"kind": "Parameter", "shape": [2, 3], "init": "normal"}
E = {"kind": "Embedding", "num_embeddings": 5, "embedding_dim": 2}
BLOCK = {"inputs": ["x"], "args": ["d"], "layers": {"fc": L}}


def model(**change):
    return {"inputs": {"x": {"shape": ["batch", 2]}}, "layers": {"fc": L}, **change}


def layer(**change):
    return model(layers={"fc": {**L, **change}})


def raw(**change):
    return model(layers={"w": {**W, **change}}, forward="x @ w")


WRONG = [
    pytest.param(model(layer={}), "layer", "unknown key 'layer'", "did you mean 'layers'", id="unknown section"),
    pytest.param({"layers": {}}, "model", "no layers", "give layers", id="no layers"),
    pytest.param(
        model(args=5), "args", "valid dictionary, got 5", "give names with values", id="args that are a number"
    ),
    pytest.param(model(args=[1]), "args.1", "name 1 is of type int", "in quotes", id="an arg that is a number"),
    pytest.param(model(args={"d": "???"}), "args.d", "has no value", "give d: ...", id="an arg without a value"),
    pytest.param(model(args={"d": "=e"}), "args.d", "unknown name 'e'", "known", id="an arg over an unknown name"),
    pytest.param(model(args={"fc": 1}), "layers.fc", "both args and layers", "rename", id="one name twice"),
    pytest.param(
        model(layers={"train": L}), "layers.train", "hide torch.nn.Module", "choose another", id="a hidden method"
    ),
    pytest.param(model(layers={"a.b": L}), "layers.a.b", "cannot be an attribute", "use letters", id="a dotted name"),
    pytest.param(model(layers={"_a": L}), "layers._a", "cannot be an attribute", "use letters", id="a private name"),
    pytest.param(model(layers={"nn": L}), "layers.nn", "generated source", "choose another", id="a reserved name"),
    pytest.param(model(layers={"fc": 3}), "layers.fc", "is not a layer", "{kind", id="a layer that is a number"),
    pytest.param(model(layers={"fc": {}}), "layers.fc.kind", "'kind' is missing", "give kind", id="no kind"),
    pytest.param(
        layer(kind="Linera"), "layers.fc.kind", "unknown kind 'Linera'", "did you mean 'Linear'", id="unknown kind"
    ),
    pytest.param(layer(kind="LazyLinear"), "layers.fc.kind", "unknown kind", "lazy layer", id="a lazy kind"),
    pytest.param(layer(kind="ModuleList"), "layers.fc.kind", "unknown kind", "use repeat", id="a container"),
    pytest.param(layer(kind="os.system"), "layers.fc.kind", "is not allowed", "allow its package", id="a dotted kind"),
    pytest.param(layer(in_feature=2), "layers.fc.in_feature", "no argument", "in_features", id="unknown argument"),
    pytest.param(
        model(layers={"fc": {"kind": "Linear", "in_features": 2}}),
        "layers.fc",
        "needs 'out_features'",
        "give",
        id="missing argument",
    ),
    pytest.param(
        layer(in_features=True), "layers.fc.in_features", "is a number, got True", "bools", id="a bool for a number"
    ),
    pytest.param(
        layer(in_features=2.5), "layers.fc.in_features", "whole number", "use //", id="a fraction for a number"
    ),
    pytest.param(layer(in_features=0), "layers.fc.in_features", "is 0", "one or more", id="no features"),
    pytest.param(layer(bias=1), "layers.fc.bias", "true or false", "write true", id="a number for a bool"),
    pytest.param(layer(device="cuda"), "layers.fc.device", "no device", "device=", id="a device"),
    pytest.param(
        layer(dtype="float33"), "layers.fc.dtype", "unknown dtype", "did you mean 'float32'", id="unknown dtype"
    ),
    pytest.param(
        layer(repeat=True), "layers.fc.repeat", "is a bool", "a count is a whole number", id="a bool for repeat"
    ),
    pytest.param(layer(repeat=-1), "layers.fc.repeat", "got -1", "from 0 to", id="a negative repeat"),
    pytest.param(layer(repeat="=2/1"), "layers.fc.repeat", "got 2.0", "whole number", id="a fractional repeat"),
    pytest.param(
        model(layers={"e": {**E, "padding_idx": -1}}),
        "layers.e.padding_idx",
        "is -1",
        "count from the front",
        id="negative padding_idx",
    ),
    pytest.param(raw(size=3), "layers.w", "unknown key 'size'", "known", id="unknown key of a Parameter"),
    pytest.param(raw(shape=None), "layers.w", "needs a shape", "give shape", id="no shape"),
    pytest.param(raw(shape=[0, 3]), "layers.w.shape", "shape is [0, 3]", "above zero", id="an empty shape"),
    pytest.param(raw(axes=["in", "in"]), "layers.w.axes", "for shape", "one `out`", id="wrong axes"),
    pytest.param(
        raw(init={"weight": "normal"}), "layers.w", "takes one policy", "init: normal", id="init by parameter"
    ),
    pytest.param(
        raw(init="kaimng_normal"), "layers.w.init.policy", "unknown policy", "kaiming_normal", id="unknown policy"
    ),
    pytest.param(raw(init="constant"), "layers.w.init.val", "needs 'val'", "give val", id="missing policy argument"),
    pytest.param(
        raw(init={"policy": "normal", "st": 1}),
        "layers.w.init.st",
        "no argument 'st'",
        "did you mean 'std'",
        id="unknown policy argument",
    ),
    pytest.param(
        raw(init={"policy": "normal", "std": -1}), "layers.w.init.std", "is -1", "zero or more", id="a negative std"
    ),
    pytest.param(
        raw(init={"policy": "normal", "std": True}),
        "layers.w.init.std",
        "got True",
        "not text or a bool",
        id="a bool std",
    ),
    pytest.param(
        raw(init={"policy": "normal", "std": float("nan")}),
        "layers.w.init.std",
        "nan",
        "finite",
        id="a std that is no number",
    ),
    pytest.param(
        raw(init={"policy": "kaiming_normal", "mode": "fan"}),
        "layers.w.init.mode",
        "unknown mode",
        "fan_in",
        id="unknown mode",
    ),
    pytest.param(
        raw(init="xavier_normal"), "layers.w.init", "fan-in and fan-out", "axes: [in, out]", id="fans without axes"
    ),
    pytest.param(
        raw(shape=[6], init="orthogonal"),
        "layers.w.init",
        "needs 2 dimensions",
        "another policy",
        id="too few dimensions",
    ),
    pytest.param(
        raw(shape=[2, 3, 1], init="eye"), "layers.w.init", "at most 2", "another policy", id="too many dimensions"
    ),
    pytest.param(
        raw(init={"policy": "values", "values": [1, 2]}),
        "layers.w.init.values",
        "shape (2,)",
        "nested lists",
        id="values of another shape",
    ),
    pytest.param(
        raw(init={"policy": "values", "values": [[1, 2, 3], [1]]}),
        "layers.w.init.values",
        "even rows",
        "nested lists",
        id="ragged values",
    ),
    pytest.param(
        layer(init="normal"),
        "layers.fc.init",
        "2 parameters of its own: weight, bias",
        "say which",
        id="one policy for two parameters",
    ),
    pytest.param(
        layer(init={"wieght": "normal"}),
        "layers.fc.init.wieght",
        "no parameter",
        "did you mean 'weight'",
        id="unknown parameter of a layer",
    ),
    pytest.param(
        model(init={"r": {"match": "fd.*", "policy": "zeros"}}),
        "init.r",
        "matches no parameter: match: 'fd.*'",
        "the model has: fc.weight",
        id="a rule that matches nothing",
    ),
    pytest.param(
        model(init={"a": {"policy": "zeros"}, "b": {"policy": "ones"}}),
        "init.a",
        "decides nothing: init.b",
        "put it after",
        id="a rule that decides nothing",
    ),
    pytest.param(
        model(init={"a": {"mach": "*", "policy": "zeros"}}),
        "init.a.mach",
        "no argument 'mach'",
        "did you mean 'match'",
        id="a selector misspelt",
    ),
    pytest.param(
        model(init={"a": {"policy": "normal", "std": "=d"}}),
        "init.a.std",
        "unknown name 'd'",
        "known",
        id="a rule over an unknown name",
    ),
    pytest.param(
        model(freeze={"f": {"match": "fd.*"}}),
        "freeze.f",
        "matches no parameter",
        "the model has",
        id="a freeze rule that matches nothing",
    ),
    pytest.param(
        model(freeze={"f": {}, "g": {"match": "fc.bias"}}),
        "freeze.g",
        "decides nothing: freeze.f",
        "remove",
        id="a freeze rule that decides nothing",
    ),
    pytest.param(
        model(freeze={"f": {"mach": "*"}}), "freeze.f.mach", "unknown key 'mach'", "match", id="a freeze rule misspelt"
    ),
    pytest.param(
        model(tie={"fc.weigth": "fc.weight"}),
        "tie.fc.weigth",
        "no parameter 'fc.weigth'",
        "did you mean 'fc.weight'",
        id="a tie of an unknown name",
    ),
    pytest.param(
        model(tie={"fc.weight": "fc.bias"}),
        "tie.fc.weight",
        "is (2, 2) but 'fc.bias' is (2,)",
        "equal shapes",
        id="a tie of unequal shapes",
    ),
    pytest.param(
        model(tie={"fc.weight": "fc.weight"}), "tie.fc.weight", "a cycle", "remove its tie", id="a tie to itself"
    ),
    pytest.param(
        model(layers={"a": L, "b": {**L, "dtype": "float64"}}, tie={"a.weight": "b.weight"}),
        "tie.a.weight",
        "float32",
        "equal dtypes",
        id="a tie of unequal dtypes",
    ),
    pytest.param(
        model(layers={"a": L, "b": {**L, "init": {"weight": "zeros"}}}, tie={"b.weight": "a.weight"}),
        "layers.b.init.weight",
        "'b.weight' is tied to 'a.weight'",
        "give 'a.weight' the init",
        id="an init of an alias",
    ),
    pytest.param(
        model(layers={"a": L, "b": L}, tie={"b.weight": "a.weight"}, freeze={"f": {"match": "b.weight"}}),
        "freeze.f",
        "is tied to 'a.weight'",
        "address 'a.weight' instead",
        id="a freeze rule of an alias",
    ),
    pytest.param(
        model(inputs={"x": {"shape": ["batch", 3]}}),
        "layers.fc",
        "`return self.fc(x)`",
        "fc.weight (2, 2)",
        id="shapes that do not fit",
    ),
    pytest.param(
        model(inputs={"x": {"shape": ["batch", 3]}}, forward="y = x\nreturn fc(y)"),
        "forward",
        "self.fc(y)",
        "fc.weight (2, 2)",
        id="shapes that do not fit in forward",
    ),
    pytest.param(
        model(inputs={"x": {"shape": ["b", "=d"]}}),
        "inputs.x.shape",
        "unknown name 'd'",
        "known",
        id="an input over an unknown name",
    ),
    pytest.param(
        model(inputs={"x": {"shape": [True]}}), "inputs.x.shape.0", "is a bool", "a size is a number", id="a bool size"
    ),
    pytest.param(
        model(inputs={"x": {"range": [0, "=d"]}}),
        "inputs.x.range",
        "unknown name 'd'",
        "known",
        id="a range over an unknown name",
    ),
    pytest.param(
        model(inputs={"x": {"shpe": []}}),
        "inputs.x.shpe",
        "unknown key",
        "did you mean 'shape'",
        id="an input misspelt",
    ),
    pytest.param(model(inputs={}, forward="fc(1)"), "inputs", "no inputs", "give inputs", id="no inputs"),
    pytest.param(
        model(inputs={"x": {}, "y": {}}), "forward", "one input, not 2", "write a forward", id="two inputs in order"
    ),
    pytest.param(
        model(layers={"w": W}), "forward", "cannot run in order", "write a forward", id="a raw Parameter in order"
    ),
    pytest.param(model(forward="3"), "forward", "returns int", "return a tensor", id="a forward that returns a number"),
    pytest.param(model(forward="y = x\nreturn fd(y)"), "forward", "unknown name 'fd'", "fc", id="a layer misspelt"),
    pytest.param(
        model(buffers={"b": {}}), "buffers.b.value", "is missing", "give value", id="a buffer without a value"
    ),
    pytest.param(
        model(buffers={"b": {"value": 1, "persistent": "no"}}),
        "buffers.b.persistent",
        "boolean",
        "true or false",
        id="text for persistent",
    ),
    pytest.param(
        model(blocks={"Linear": BLOCK}),
        "blocks.Linear",
        "hides torch.nn.Linear",
        "rename",
        id="a block that hides a class",
    ),
    pytest.param(
        model(blocks={"Parameter": BLOCK}), "blocks.Parameter", "hides", "rename", id="a block that hides Parameter"
    ),
    pytest.param(
        model(blocks={"B": BLOCK}, layers={"b": {"kind": "B"}}),
        "layers.b",
        "needs 'd'",
        "give d",
        id="a block without its argument",
    ),
    pytest.param(
        model(blocks={"B": BLOCK}, layers={"b": {"kind": "B", "d": 1, "e": 2}}),
        "layers.b.e",
        "no argument 'e'",
        "known: d",
        id="a block with another argument",
    ),
    pytest.param(
        model(blocks={"B": {"inputs": ["x"], "layers": {"b": {"kind": "B"}}}}, layers={"b": {"kind": "B"}}),
        "blocks.B.layers.b",
        "contains itself",
        "use repeat",
        id="a block within itself",
    ),
    pytest.param(
        model(blocks={"sum": BLOCK}, layers={"b": {"kind": "sum", "d": 1}}),
        "blocks.sum",
        "hides the function",
        "rename",
        id="a block that hides a function",
    ),
    pytest.param(
        model(args={"i": 1}, layers={"fc": {**L, "repeat": 2}}),
        "args.i",
        "'i' names the index",
        "rename the arg",
        id="an arg that is the index of a repeat",
    ),
    pytest.param(
        model(inputs={"layer": {"shape": ["b", 2]}}),
        "inputs.layer",
        "'layer' names",
        "rename the input",
        id="an input that is the item of a repeat",
    ),
    pytest.param(
        model(inputs={"x": {"shape": ["b"], "dtype": "int64"}}, layers={"e": {**E, "max_norm": 1.0}}, freeze={"f": {}}),
        "freeze.f",
        "max_norm rewrites",
        "take max_norm out of layers.e",
        id="a frozen Embedding whose rows are rewritten",
    ),
    pytest.param(
        model(buffers={"n": {"value": 0}}, forward="n += x.mean()\nreturn fc(x)"),
        "forward",
        "torch.int64 and its new value torch.float32",
        "declare its dtype",
        id="a buffer that would cut fractions off",
    ),
    pytest.param(
        model(buffers={"n": {"value": "=zeros(2).bernoulli()"}}, forward="fc(x) + n"),
        "buffers.n.value",
        "bernoulli draws random numbers",
        "Parameter with an init",
        id="a buffer that is drawn",
    ),
    pytest.param(
        model(buffers={"b": {"value": [1.0, 1.0e6], "dtype": "float16"}}, forward="fc(x) * b"),
        "buffers.b.value",
        "1000000.0 is more than float16 holds",
        "a wider dtype",
        id="a buffer that its dtype makes infinite",
    ),
    pytest.param(
        model(inputs={"x": {"range": [5, 1]}}),
        "inputs.x.range",
        "from 5 to below 1",
        "least first",
        id="an empty range",
    ),
    pytest.param(
        model(layers={"n": {"kind": "LayerNorm", "normalized_shape": 2, "eps": float("nan")}}),
        "layers.n.eps",
        "is nan",
        "finite",
        id="an argument that is no number",
    ),
    pytest.param(
        model(layers={"d": {"kind": "Dropout", "p": 2}}),
        "layers.d",
        "between 0 and 1",
        "arguments that its class takes",
        id="an argument that the class refuses",
    ),
    pytest.param(model(args={"a": "${oc.env:HOME}"}), "args.a", "resolver", "= expression", id="a resolver"),
    pytest.param(
        model(args={"a": "${nothing}"}), "args.a", "not found", "interpolation", id="an interpolation of nothing"
    ),
]


@pytest.mark.parametrize(("data", "address", "cause", "remedy"), WRONG)
def test_wrong_model_is_refused_with_address_cause_and_remedy(data, address, cause, remedy, given):
    with pytest.raises(builder.BuilderError) as caught:
        builder.prove(given(data))
    problems = {problem.address: problem for problem in caught.value.problems}
    assert address in problems, str(caught.value)
    assert cause in problems[address].what, str(caught.value)
    assert remedy.replace("= expression", "`=` expression") in problems[address].what + problems[address].hint, str(
        caught.value
    )


def test_all_problems_of_a_stage_come_at_once(given):
    data = model(layers={"a": {**L, "bia": 1}, "b": {**L, "kind": "Linera"}, "c": {**L, "in_features": -1}})
    with pytest.raises(builder.BuilderError) as caught:
        builder.build(given(data))
    assert [p.address for p in caught.value.problems] == ["layers.a.bia", "layers.b.kind", "layers.c.in_features"]


def test_refused_model_has_allocated_nothing(given, monkeypatch):
    import torch

    allocated = []
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: allocated.append(real(*a, **k)) or allocated[-1])
    data = model(layers={"fc": {**L, "out_features": 3}, "head": {**L, "in_features": 4}})
    with pytest.raises(builder.BuilderError):
        builder.build(given(data))
    assert all(tensor.is_meta or not tensor.numel() for tensor in allocated)


@pytest.mark.parametrize(
    ("options", "address", "cause", "remedy"),
    [
        pytest.param({"rng": "numpy"}, "rng", "unknown rng", "keyed, torch", id="rng"),
        pytest.param({"seed": True}, "init_seed", "seed True", "whole number", id="a bool seed"),
        pytest.param({"seed": -1}, "init_seed", "seed -1", "zero or more", id="a negative seed"),
        pytest.param(
            {"init": "orthogonl"}, "init", "unknown policy", "did you mean 'orthogonal'", id="scheme misspelt"
        ),
        pytest.param({"init": ["zeros"]}, "init", "got a list", "named rules", id="a list for a scheme"),
        pytest.param(
            {"init": {"r": {"match": "*"}}}, "init.r.policy", "is missing", "give policy", id="rule without a policy"
        ),
        pytest.param(
            {"freeze": {"f": {"match": "no"}}}, "freeze.f", "matches no parameter", "the model has", id="freeze"
        ),
        pytest.param({"allow": 5}, "allow", "got 5", 'allow=["my_package"]', id="a number allowed"),
        pytest.param({"allow": ["own", None]}, "allow", "got None", 'allow=["my_package"]', id="None allowed"),
        pytest.param({"allow": ""}, "allow", "got ''", 'allow=["my_package"]', id="nothing allowed"),
        pytest.param({"args": {"dd": 3}}, "args.dd", "no argument 'dd'", "did you mean 'd'", id="an unknown arg"),
    ],
)
def test_wrong_option_of_build_is_refused(options, address, cause, remedy, given):
    with pytest.raises(builder.BuilderError) as caught:
        builder.build(given(model(args={"d": 1})), **options)
    problem = caught.value.problems[0]
    assert (problem.address, cause in problem.what, remedy in problem.hint) == (address, True, True), str(caught.value)


@pytest.mark.parametrize(
    ("text", "place", "cause"),
    [
        pytest.param("layers:\n  fc: {kind: Linera}\n", "m.yaml:2", "unknown kind", id="a key's line"),
        pytest.param(
            "layers:\n  fc: {kind: Linear, in_features: 2, out_features: 2}\ninputs: [x]\n"
            "forward: |\n  y = x\n  return fd(y)\n",
            "m.yaml",
            "unknown name 'fd'",
            id="forward",
        ),
        pytest.param("layers: [\n", "m.yaml", "", id="not YAML"),
        pytest.param("- 1\n", "m.yaml", "not a mapping", id="a list"),
        pytest.param(
            "layers: {fc: {kind: Linear, in_features: =max(1, 2), out_features: 2}}\n", "m.yaml:1", "", id="cut by YAML"
        ),
    ],
)
def test_problem_of_a_file_has_its_line(tmp_path, text, place, cause, refusal):
    file = tmp_path / "m.yaml"
    file.write_text(text)
    problem = refusal(builder.prove, file)
    assert problem.place.startswith(place)
    assert cause in problem.what


def test_missing_file_names_its_neighbours(tmp_path, refusal):
    (tmp_path / "gpt.yaml").write_text("")
    problem = refusal(builder.prove, tmp_path / "gtp.yaml")
    assert problem.what == "no such file"
    assert "did you mean 'gpt.yaml'" in problem.hint


def test_file_that_is_not_text_says_what_a_model_file_is(tmp_path, refusal):
    (tmp_path / "m.yaml").write_bytes(b"\xff\xfe\x00")
    problem = refusal(builder.prove, tmp_path / "m.yaml")
    assert "decode" in problem.what
    assert problem.hint == "a model file is YAML in UTF-8"


@pytest.mark.parametrize(
    ("override", "cause", "remedy"),
    [
        pytest.param("=", "is not an override", "key=value", id="no key"),
        pytest.param("d", "is not an override", "key=value", id="no value"),
        pytest.param("init=orthogonal", "replaces all of 'init'", "init.NAME", id="a whole section"),
        pytest.param("args.e=1", "no argument 'e'", "known: d", id="an unknown arg"),
    ],
)
def test_wrong_override_of_a_model_file_is_refused(tmp_path, refusal, override, cause, remedy):
    (tmp_path / "m.yaml").write_text("args: {d: 2}\nlayers: {fc: {kind: Linear, in_features: =d, out_features: 2}}\n")
    problem = refusal(read_file, tmp_path / "m.yaml", [override])
    assert (problem.address, cause in problem.what, remedy in problem.hint) == (override, True, True), problem
