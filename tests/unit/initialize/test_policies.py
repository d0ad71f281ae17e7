"""The policies beyond torch.nn.init: expression, copy, lsuv, a function of the user's own; and axes in a rule."""

import math

import pytest
import torch
from torch import nn

import builder


def raw(policy, *, shape=(4, 6), **more):
    layers = {"w": {"kind": "Parameter", "shape": list(shape), "init": policy}, **more.pop("layers", {})}
    return {"args": {"d": 3}, "inputs": {"x": {}}, "layers": layers, "forward": "x", **more}


# ---- expression ----------------------------------------------------------------------------------------------------


def expression(value, **draws):
    return {"policy": "expression", "value": value, "draws": draws}


def test_expression_over_a_draw_has_the_declared_distribution(given):
    init = expression("=where(abs(u) >= 5, u, 0)", u={"policy": "uniform", "a": -10, "b": 10})
    values = builder.build(given(raw(init, shape=(500, 400)))).w
    zeros = (values == 0).double().mean().item()
    assert abs(zeros - 0.5) < 4 * math.sqrt(0.25 / 200_000), "half of [-10, 10] lies within [-5, 5]"
    assert values[values != 0].abs().min() >= 5
    assert values.abs().max() <= 10


def test_expression_knows_each_values_place_and_the_args(given):
    values = builder.build(given(raw(expression("=100 * i0 + i1 + d / 4"), shape=(2, 3)))).w
    assert values.tolist() == [[0.75, 1.75, 2.75], [100.75, 101.75, 102.75]]


def test_expression_may_take_the_least_of_the_args_alone():
    values = builder.build(raw(expression("=min(3, d, 4) + max(i0, 5) + i1 + (1 in [1])"), args={"d": 2, "i0": 9})).w
    assert values[0].tolist() == [12, 13, 14, 15, 16, 17]


def test_expression_over_two_draws_draws_each_on_its_own(given):
    init = expression("=u - v", u="normal", v="normal")
    values = builder.build(given(raw(init, shape=(300, 300)))).w
    assert values.std().item() == pytest.approx(math.sqrt(2), rel=0.02)  # a standard error is 0.002


def test_expression_in_half_precision_is_computed_in_float32():
    data = raw(expression("=1 / 3"))
    data["layers"]["w"]["dtype"] = "bfloat16"
    assert (builder.build(data).w == torch.tensor(1 / 3).bfloat16()).all()


def test_block_expression_sees_the_blocks_args():
    inner = {"kind": "Parameter", "shape": [2], "init": expression("=k + i0")}
    block = {"args": ["k"], "inputs": ["x"], "layers": {"w": inner}, "forward": "x * w"}
    data = {
        "blocks": {"B": block},
        "inputs": {"x": {}},
        "layers": {"b": {"kind": "B", "k": "=10 * i", "repeat": 2}},
        "forward": "b[1](b[0](x))",
    }
    built = builder.build(data)
    assert [part.w.tolist() for part in built.b] == [[0, 1], [10, 11]]


@pytest.mark.parametrize(
    ("init", "address", "cause", "remedy"),
    [
        pytest.param(
            {"policy": "expression"}, "layers.w.init.value", "needs 'value'", "give value", id="without a value"
        ),
        pytest.param(expression(3), "layers.w.init.value", "got 3", "write value: =", id="a number"),
        pytest.param(expression("u"), "layers.w.init.value", "is not an expression", "begin with =", id="no ="),
        pytest.param(
            expression("=u + 1"), "layers.w.init.value", "unknown name 'u'", "known", id="a draw that is not declared"
        ),
        pytest.param(
            expression("=cumsum(u)", u="normal"),
            "layers.w.init.value",
            "not a function of each value alone",
            "known",
            id="a function over several values",
        ),
        pytest.param(
            expression("=u.sum()", u="normal"),
            "layers.w.init.value",
            "u.sum",
            "known",
            id="a method over several values",
        ),
        pytest.param(
            expression("=[u, u]", u="normal"),
            "layers.w.init.value",
            "=[u, u]",
            "one number for each value",
            id="two numbers for each value",
        ),
        pytest.param(
            expression("=u", u="orthogonal"),
            "layers.w.init.draws.u",
            "'orthogonal' is no draw",
            "known: normal, trunc_normal, uniform",
            id="a policy that is no draw",
        ),
        pytest.param(
            expression("=u", u={"policy": "normal", "st": 1}),
            "layers.w.init.draws.u.st",
            "no argument 'st'",
            "did you mean 'std'",
            id="a draw's argument misspelt",
        ),
        pytest.param(
            expression("=d", d="normal"),
            "layers.w.init.draws.d",
            "an argument as well",
            "another name",
            id="one name twice",
        ),
        pytest.param(
            {"policy": "expression", "value": "=1", "draws": [1]},
            "layers.w.init.draws",
            "got [1]",
            "name each draw",
            id="a list of draws",
        ),
        pytest.param(
            expression("=u[0]", u="normal"), "layers.w.init.value", "u[0] is not of each value alone", "one number",
            id="one value of a draw",
        ),
        pytest.param(
            expression("=i0 / len(u)", u="normal"), "layers.w.init.value", "len(u) is not of each", "one number",
            id="the length of a draw, which is that of a piece",
        ),
        pytest.param(
            expression("=[1, 2]"), "layers.w.init.value", "(2,) numbers for 3 values", "one number",
            id="a list of numbers",
        ),
        pytest.param(
            expression("=u", u="normal", v="normal"), "layers.w.init.draws.v", "does not read it", "remove it",
            id="a draw that nothing reads",
        ),
        pytest.param(
            expression("=u + u @ u", u="normal"), "layers.w.init.value", "@ is not of each value alone", "one number",
            id="a product over all values of a piece",
        ),
        pytest.param(
            expression("=1e39"), "layers.w.init.value", "=1e39 is inf in 'w' of float32", "at most 3.403e+38",
            id="a number that the type cannot hold",
        ),
        pytest.param(
            expression("=-inf"), "layers.w.init.value", "=-inf is -inf in 'w'", "a finite number", id="no finite number"
        ),
        *(
            pytest.param(expression(f"=({value}) * u", u="normal"), "layers.w.init.value",
                         f"{value} is not of each value alone", "write where, minimum, maximum", id=value)
            for value in ("min(u, 0)", "max(u)", "max(i0)", "min([i0, i1])", "0 in u", "d not in i1")
        ),
        *(
            pytest.param(expression("=1", **{name: "normal"}), f"layers.w.init.draws.{name}", "cannot be a draw's name",
                         "u or v", id=f"a draw called {name}")
            for name in ("sin", "torch", "i0", "pi", "u v")
        ),
        pytest.param(
            expression("=1", u={"policy": "uniform", "a": 1, "b": 0}), "layers.w.init.draws.u.a", "from 1 to 0",
            "a is below b", id="a draw without room",
        ),
    ],
)  # fmt: skip
def test_wrong_expression_is_refused(given, refusal, init, address, cause, remedy):
    problem = refusal(builder.prove, given(raw(init)))
    assert (problem.address, cause in problem.what, remedy in problem.hint) == (address, True, True), problem


def test_expression_that_is_not_finite_somewhere_is_refused_with_the_place(refusal):
    problem = refusal(builder.build, raw(expression("=log(i0)")))
    assert "=log(i0) is -inf at [0, 0] of 'w'" in problem.what


# ---- copy ----------------------------------------------------------------------------------------------------------

TWO = {"v": {"kind": "Parameter", "shape": [4, 6], "init": {"policy": "normal", "std": 0.1}}}


@pytest.mark.parametrize("rng", ["keyed", "torch"])
def test_copy_has_the_values_of_the_other_and_goes_its_own_way(given, rng):
    built = builder.build(given(raw({"policy": "copy", "of": "v"}, layers=TWO)), rng=rng)
    assert torch.equal(built.w, built.v)
    with torch.no_grad():
        built.w.add_(1)
    assert not torch.equal(built.w, built.v)


@pytest.mark.parametrize("rng", ["keyed", "torch"])
def test_copy_that_stands_before_what_it_copies_has_its_values(rng):
    after = {"copy": {"policy": "copy", "of": "w"}, "w": {"policy": "copy", "of": "fc.weight"}}
    layers = {name: {"kind": "Parameter", "shape": [4, 4], "init": init} for name, init in after.items()}
    layers["fc"] = {"kind": "Linear", "in_features": 4, "out_features": 4}
    data = {
        "inputs": {"x": {}},
        "layers": layers,
        "forward": "x",
        "init": {"late": {"match": "fc.weight", "policy": "orthogonal"}},
    }
    built = builder.build(data, rng=rng)
    assert torch.equal(built.w, built.fc.weight)
    assert torch.equal(built.copy, built.fc.weight)


@pytest.mark.parametrize("rng", ["keyed", "torch"])
def test_copy_can_be_transposed_and_follows_a_tie(rng):
    layers = {**TWO, "alias": {"kind": "Parameter", "shape": [4, 6]}}
    data = raw({"policy": "copy", "of": "alias", "transpose": True}, shape=(6, 4), layers=layers, tie={"alias": "v"})
    built = builder.build(data, rng=rng)
    assert torch.equal(built.w, built.v.T)


def test_copy_of_a_transposed_alias_is_the_transpose():
    layers = {
        "v": {"kind": "Parameter", "shape": [4, 4], "init": "normal"},
        "alias": {"kind": "Parameter", "shape": [4, 4]},
    }
    tie = {"alias": {"source": "v", "transpose": True}}
    built = builder.build(raw({"policy": "copy", "of": "alias"}, shape=(4, 4), layers=layers, tie=tie))
    assert torch.equal(built.w, built.v.T)


def test_copy_of_a_padded_embedding_keeps_its_zero_row():
    layers = {"e": {"kind": "Embedding", "num_embeddings": 4, "embedding_dim": 6, "padding_idx": 1}}
    built = builder.build(raw({"policy": "copy", "of": "e.weight"}, layers=layers))
    assert torch.equal(built.w, built.e.weight)
    assert built.w[1].abs().max() == 0


@pytest.mark.parametrize(
    ("init", "layers", "cause", "remedy"),
    [
        pytest.param({"policy": "copy", "of": "u"}, TWO, "no parameter 'u'", "known: v, w", id="of nothing"),
        pytest.param({"policy": "copy", "of": "w"}, {}, "a circle: w -> w", "be drawn", id="of itself"),
        pytest.param(
            {"policy": "copy", "of": "v"},
            {"v": {**TWO["v"], "init": {"policy": "copy", "of": "w"}}},
            "a circle: w -> v -> w",
            "be drawn",
            id="in a circle",
        ),
        pytest.param(
            {"policy": "copy", "of": "v"},
            {"v": {**TWO["v"], "shape": [6, 4]}},
            "'w' is (4, 6) but 'v' is (6, 4)",
            "transpose: true",
            id="of another shape that would fit transposed",
        ),
        pytest.param(
            {"policy": "copy", "of": "v"},
            {"v": {**TWO["v"], "shape": [5, 4]}},
            "is (5, 4)",
            "equal shapes",
            id="of another shape",
        ),
        pytest.param(
            {"policy": "copy", "of": "fc.weight"},
            {"fc": {"kind": "Linear", "in_features": 6, "out_features": 4, "init": {"weight": "lsuv"}}},
            "'fc.weight' is filled by lsuv",
            "another policy",
            id="of what is filled last",
        ),
        pytest.param({"policy": "copy", "of": 3}, TWO, "got 3", "write of:", id="of a number"),
        pytest.param(
            {"policy": "copy", "of": "v"},
            {"v": {**TWO["v"], "init": "empty"}},
            "'v' is empty: it has no values",
            "a policy that fills it",
            id="of raw memory",
        ),
        pytest.param(
            {"policy": "copy", "of": "v"},
            {"v": {**TWO["v"], "dtype": "float64"}},
            "'w' is float32 but 'v' is float64",
            "equal dtypes",
            id="of another dtype",
        ),
        pytest.param(
            {"policy": "copy", "of": "v", "transpose": True},
            {"v": {**TWO["v"], "shape": [4]}},
            "'v' of shape (4,) has no transpose",
            "two dimensions",
            id="of a vector, transposed",
        ),
    ],
)
def test_wrong_copy_is_refused(given, refusal, init, layers, cause, remedy):
    problem = refusal(builder.prove, given(raw(init, layers=layers)))
    assert (cause in problem.what, remedy in problem.hint) == (True, True), problem


# ---- lsuv ----------------------------------------------------------------------------------------------------------

DEEP = {
    "args": {"d": 16},
    "inputs": {"x": {"shape": ["batch", "=d"]}},
    "layers": {
        "fc1": {"kind": "Linear", "in_features": "=d", "out_features": 64},
        "act1": {"kind": "ReLU"},
        "drop": {"kind": "Dropout", "p": 0.5},
        "norm": {"kind": "BatchNorm1d", "num_features": 64},
        "fc2": {"kind": "Linear", "in_features": 64, "out_features": 32},
        "act2": {"kind": "Tanh"},
        "fc3": {"kind": "Linear", "in_features": 32, "out_features": 8},
    },
    "init": {"weights": {"match": "fc*.weight", "policy": "lsuv"}},
}
REAL = torch.rand(256, 16, generator=torch.Generator().manual_seed(0)) * 7 + 1


def output_stds(model, batch):
    found = {}
    for name in ("fc1", "fc2", "fc3"):
        model.get_submodule(name).register_forward_hook(
            lambda layer, inputs, output, name=name: found.__setitem__(name, output.std().item())
        )
    model.eval()(batch)
    return found


@pytest.mark.parametrize("batch", [REAL, (REAL,), {"x": REAL}], ids=["tensor", "tuple", "mapping"])
def test_lsuv_gives_each_layer_the_declared_std_on_the_batch(given, batch):
    model = builder.build(given(DEEP), batch=batch)
    assert model.training
    assert model.norm.num_batches_tracked == 0
    for std in output_stds(model, REAL).values():
        assert std == pytest.approx(1, abs=0.05)
    start = builder.build({**DEEP, "init": {"weights": {"match": "fc*.weight", "policy": "orthogonal"}}})
    scale = model.fc2.weight / start.fc2.weight
    assert torch.allclose(scale, scale[0, 0].expand_as(scale), rtol=1e-4), "an orthogonal matrix, scaled"


def test_lsuv_without_a_batch_is_refused(refusal):
    problem = refusal(builder.build, DEEP)
    assert (problem.address, "batch=" in problem.hint) == ("init.weights", True)


def test_lsuv_of_a_layer_that_does_not_run_on_the_batch_is_refused(refusal):
    data = {**DEEP, "forward": "fc2(fc1(x))"}
    problem = refusal(builder.build, data, batch=REAL)
    assert "'fc3' is not called" in problem.what


def test_lsuv_that_cannot_reach_its_std_says_what_it_reached(refusal):
    data = {**DEEP, "init": {"weights": {"match": "fc*.weight", "policy": "lsuv", "iterations": 1, "tolerance": 1e-6}}}
    problem = refusal(builder.build, data, batch=REAL)
    assert "after 1 scalings, not 1" in problem.what
    assert "raise tolerance" in problem.hint


def test_lsuv_on_a_batch_without_variance_is_refused(refusal):
    problem = refusal(
        builder.build, {**DEEP, "init": {**DEEP["init"], "b": {"match": "*.bias", "policy": "zeros"}}}, batch=0 * REAL
    )
    assert "'fc1' has std 0.0" in problem.what


COUNTED = {**DEEP, "buffers": {"count": {"value": 0}}, "forward": "count += 1\nreturn fc3(fc2(fc1(x)))"}


def test_lsuv_leaves_buffers_that_forward_updates_as_they_were():
    assert builder.build(COUNTED, batch=REAL).count == 0


def test_lsuv_of_two_weights_of_one_layer_is_refused(given, refusal):
    data = {
        "inputs": {"x": {"shape": ["b", "t", 4]}},
        "layers": {"lstm": {"kind": "LSTM", "input_size": 4, "hidden_size": 4}},
        "forward": "lstm(x)[0]",
        "init": {"r": {"min_ndim": 2, "policy": "lsuv"}},
    }
    problem = refusal(builder.prove, given(data))
    assert (problem.address, "match one of them" in problem.hint) == ("init.r", True)
    assert "decides lstm.weight_ih_l0 and lstm.weight_hh_l0" in problem.what


@pytest.mark.parametrize(
    ("batch", "address", "what", "hint"),
    [
        pytest.param((REAL, REAL), "batch", "has 2 parts, and the model 1 inputs: x", "in order", id="too many"),
        pytest.param({"y": REAL}, "batch.y", "no input 'y'", "known: x", id="an unknown name"),
        pytest.param({}, "batch", "lacks the input 'x'", "by name", id="one missing"),
        pytest.param([3], "batch.x", "is a int", "give a tensor", id="no tensor"),
        pytest.param(REAL[None], "inputs.x", "the batch has shape (1, 256, 16)", "mend data", id="other dimensions"),
        pytest.param(REAL[:, :5], "forward", "cannot be multiplied", "fc1.weight (64, 16)", id="another width"),
        pytest.param(REAL[:0], "init.weights", "'fc1' has std nan", "the data", id="an empty batch"),
    ],
)
def test_batch_that_does_not_fit_is_refused(given, refusal, batch, address, what, hint):
    problem = refusal(builder.build, given({**DEEP, "forward": "fc3(fc2(fc1(x)))"}), batch=batch)
    assert (problem.address, what in problem.what, hint in problem.hint) == (address, True, True), problem


def test_lsuv_of_a_raw_parameter_is_refused(given, refusal):
    assert "is no layer" in refusal(builder.prove, given(raw("lsuv"))).what


def test_lightning_module_takes_a_batch_of_the_task(refusal):
    config = {
        "model": DEEP,
        "task": {"batch": ["x", "y"], "loss": "cross_entropy(model(x), y)"},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
    }
    lit = builder.lightning_module(config, batch=(REAL, torch.zeros(256, dtype=torch.int64)))
    assert output_stds(lit.model, REAL)["fc3"] == pytest.approx(1, abs=0.05)
    assert refusal(builder.lightning_module, config).address == "init.weights"


# ---- a function of the user's own ----------------------------------------------------------------------------------


def halves(tensor, generator, scale=1.0):
    """An init of one's own: two values only."""
    with torch.no_grad():
        tensor.copy_((torch.rand(tensor.shape, generator=generator) - 0.5).sign() * scale)


def lazy(tensor, generator):
    """Leaves the last row as it was."""
    tensor.detach()[:-1].fill_(1.0)


def raising(tensor, generator):
    """Fails."""
    raise KeyError("no such thing")


def resizing(tensor, generator):
    """Writes into another tensor than it was given."""
    tensor.resize_(1).zero_()


def replacing(tensor, generator):
    """Gives the tensor other memory."""
    tensor.set_(torch.zeros(tensor.shape))


def careless(tensor, generator):
    """Draws from the global generator."""
    tensor.detach().normal_()


def without_generator(tensor):
    """Takes no generator."""


HERE = __name__
dump = torch.save  # leads out of what is allowed


def test_function_of_ones_own_fills_the_parameter(given):
    data = raw({"policy": f"{HERE}.halves", "scale": 0.5})
    built = [builder.build(given(data), allow=[HERE], seed=seed).w for seed in (0, 0, 1)]
    assert set(built[0].flatten().tolist()) == {-0.5, 0.5}
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])


def test_function_of_ones_own_as_a_scheme_from_outside():
    built = builder.build(raw("ones"), init=f"{HERE}.halves", allow=[HERE])
    assert set(built.w.flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(
    ("policy", "allow", "cause", "remedy"),
    [
        pytest.param(f"{HERE}.halves", [], "is not allowed", "allow=[", id="nothing is allowed"),
        pytest.param("os.system", [HERE], "'os.system' is not allowed", HERE, id="another package"),
        pytest.param(f"{HERE}x.halves", [HERE], "is not allowed", HERE, id="a name that only begins alike"),
        pytest.param(f"{HERE}.halve", [HERE], "no function 'halve'", "did you mean 'halves'", id="misspelt"),
        pytest.param(f"{HERE}.nothing.f", [HERE], "cannot be imported", "mend the name", id="no such module"),
        pytest.param(f"{HERE}.dump", [HERE], "is torch.serialization.save", HERE, id="a name that leads elsewhere"),
        pytest.param(f"{HERE}.nn", [HERE], "no function 'nn'", "known", id="a module"),
        pytest.param(f"{HERE}.without_generator", [HERE], "cannot be called", "signature", id="no generator"),
        pytest.param({"policy": f"{HERE}.halves", "scal": 1}, [HERE], "scal", "arguments", id="an argument misspelt"),
    ],
)
def test_function_that_is_not_allowed_or_does_not_fit_is_refused(given, refusal, policy, allow, cause, remedy):
    problem = refusal(builder.prove, given(raw(policy)), allow=allow)
    assert (problem.address, cause in problem.what, remedy in problem.hint) == ("layers.w.init.policy", True, True), (
        problem
    )


@pytest.mark.parametrize(
    ("function", "what", "hint"),
    [
        pytest.param("lazy", "left 6 of 24 values of 'w' unwritten", "in place", id="a row left"),
        pytest.param("resizing", "left 23 of 24 values", "in place", id="another size"),
        pytest.param("replacing", "left 24 of 24 values", "in place", id="other memory"),
        pytest.param("raising", "raised KeyError for 'w' of shape (4, 6): 'no such thing'", "mend", id="an exception"),
        pytest.param("careless", "drew 'w' from torch's global generator", "generator=generator", id="global draws"),
    ],
)
def test_function_that_does_not_do_its_part_is_refused(refusal, function, what, hint):
    problem = refusal(builder.build, raw(f"{HERE}.{function}"), allow=[HERE])
    assert problem.address == "layers.w.init"
    assert f"{HERE}.{function} {what}" in problem.what
    assert hint in problem.hint
    assert nn is not None


def test_function_may_draw_from_the_global_generator_where_the_rest_does():
    assert builder.build(raw(f"{HERE}.careless"), allow=[HERE], rng="torch").w.isfinite().all()


# ---- axes in a rule ------------------------------------------------------------------------------------------------


def test_axes_of_a_rule_say_which_way_a_transposed_convolution_is_read():
    layer = {"kind": "ConvTranspose2d", "in_channels": 256, "out_channels": 4, "kernel_size": 3}
    rule = {"match": "up.weight", "policy": "kaiming_normal", "nonlinearity": "relu"}
    data = {"inputs": {"x": {}}, "layers": {"up": layer}, "forward": "up(x)"}
    misread = builder.build({**data, "init": {"up": rule}}).up.weight.std().item()
    read = builder.build({**data, "init": {"up": {**rule, "axes": ["in", "out", "field", "field"]}}}).up.weight.std()
    assert misread == pytest.approx(math.sqrt(2 / (4 * 9)), rel=0.05)
    assert read.item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.05)


def test_axes_of_a_rule_serve_a_raw_parameter():
    rule = {"match": "w", "policy": "xavier_normal", "axes": ["in", "out"]}
    assert builder.build(raw("ones", init={"w": rule})).w.std() > 0


@pytest.mark.parametrize("axes", [["in"], ["in", "in"], ["in", "out", "field"]])
def test_wrong_axes_of_a_rule_are_refused(given, refusal, axes):
    data = raw("ones", init={"w": {"match": "w", "policy": "normal", "axes": axes}})
    problem = refusal(builder.prove, given(data))
    assert (problem.address, "one `in`, one `out`" in problem.hint) == ("init.w.axes", True)


def test_trunc_normal_without_room_is_refused(given, refusal):
    problem = refusal(builder.prove, given(raw({"policy": "trunc_normal", "a": 1, "b": 1})))
    assert (problem.address, problem.hint) == ("layers.w.init.a", "a is below b")
