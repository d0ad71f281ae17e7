"""Verdicts: what is said of which numbers, and of healthy ones nothing."""

import polars
import pytest

from builder.stats.store import OUTPUT_SCHEMA, SCHEMA
from builder.stats.verdicts import depths_judged, layer_of, verdicts

HEALTHY = {"rms": 0.05, "nonfinite": 0, "gradient_rms": 1e-3, "gradient_nonfinite": 0, "update_rms": 5e-5}


def parameters(*rows):
    """Rows of parameters, healthy where nothing else is said."""
    full = [{"epoch": 0, **HEALTHY, "update_ratio": 1e-3, **row} for row in rows]
    return polars.DataFrame(full, schema=SCHEMA)


def outputs(*rows):
    return polars.DataFrame(
        [{"epoch": 0, "step": 1, "kind": "Linear", "rms": 1.0, **row} for row in rows], OUTPUT_SCHEMA
    )


def table(*names, **change):
    return [{"name": n, "shape": (4, 4), "trainable": True, "tied_to": None, "held": (), **change} for n in names]


DEEP = [f"h.{i}.weight" for i in range(10)]


def by_layer(names, **columns):
    """A row of each parameter's layer."""
    values = zip(*columns.values(), strict=True)
    return [
        {"layer": layer_of(name), **dict(zip(columns, each, strict=True))}
        for name, each in zip(names, values, strict=True)
    ]


def found(given_parameters=None, given_outputs=None, given_table=()):
    rows = parameters() if given_parameters is None else given_parameters
    return verdicts(rows, outputs() if given_outputs is None else given_outputs, given_table)


def test_healthy_numbers_have_no_verdict():
    rows = parameters(*({"step": step, "name": name} for step in (1, 2, 3) for name in DEEP))
    layers = outputs(*({"layer": name.removesuffix(".weight"), "dead": 0.1} for name in DEEP))
    assert found(rows, layers, table(*DEEP)) == []


def test_nothing_recorded_has_no_verdict():
    assert found() == []


def test_first_nonfinite_step_names_its_parameters():
    rows = parameters(
        {"step": 5, "name": "a"},
        {"step": 7, "name": "a", "nonfinite": 2},
        {"step": 7, "name": "b", "gradient_nonfinite": 3},
        {"step": 9, "name": "b", "nonfinite": 9},
    )
    weights, gradients = found(rows)
    assert (weights.kind, weights.severity, weights.names, weights.step) == ("nonfinite", "error", ("a",), 7)
    assert weights.numbers == {"a": 2}
    assert gradients.text == "NaN or infinite gradients of b at step 7."


@pytest.mark.parametrize(
    ("factor", "kind"),
    [
        pytest.param(0.5, "vanishing", id="halved by each layer"),
        pytest.param(2.0, "exploding", id="doubled by each layer"),
        pytest.param(0.9, None, id="a tenth less"),
    ],
)
def test_scale_of_outputs_by_depth(factor, kind):
    layers = outputs(*({"layer": f"h.{i}", "rms": factor**i} for i in range(10)))
    rows = parameters(*({"step": 1, "name": name} for name in DEEP))
    said = found(rows, layers)
    assert [verdict.kind for verdict in said] == ([kind] if kind else [])
    if kind:
        assert said[0].names == ("h.0", "h.9")
        assert said[0].numbers["factor"] == pytest.approx(factor**9)


def test_layers_without_a_weight_are_not_counted_in_depth():
    layers = outputs(*({"layer": f"act.{i}", "kind": "ReLU", "rms": 0.1**i} for i in range(10)))
    assert found(parameters({"step": 1, "name": "fc.weight"}), layers) == []


def test_gradients_that_vanish_towards_the_input():
    rows = parameters(*({"step": 1, "name": n, "gradient_rms": 10.0 ** (i - 9)} for i, n in enumerate(DEEP)))
    (said,) = found(rows, given_table=table(*DEEP))
    assert (said.kind, said.names) == ("vanishing", ("h.9.weight", "h.0.weight"))
    ends = "from 1 in h.9.weight to 1e-09 in h.0.weight"
    assert said.text == f"The gradients of the matrices vanish by a factor of 1e+09 over 10 layers: {ends}."


def test_factor_of_a_change_over_depth_is_that_of_the_line_through_all_layers():
    scales = [3.0, *(2.0**i for i in range(1, 10))]
    (said,) = found(parameters(*({"step": 1, "name": n} for n in DEEP)), outputs(*by_layer(DEEP, rms=scales)))
    assert (
        said.text
        == "The outputs of the layers explode by a factor of 300 over 10 layers: from 3 in h.0 to 5.1e+02 in h.9."
    )
    assert said.numbers["factor"] == pytest.approx(300, rel=0.05)


def test_gradients_of_outputs_count_where_a_probe_has_them():
    rows = parameters(*({"step": 1, "name": n, "gradient_rms": 10.0 ** (i - 9)} for i, n in enumerate(DEEP)))
    layers = outputs(*({"layer": name.removesuffix(".weight")} for name in DEEP))
    layers = layers.with_columns(gradient_rms=polars.Series([3.0 ** (9 - i) for i in range(10)]))
    (said,) = found(rows, layers, table(*DEEP))
    assert (said.kind, said.names) == ("exploding", ("h.9", "h.0"))


def test_share_of_several_layers_is_that_of_the_worst():
    layers = outputs({"layer": "a", "kind": "ReLU", "dead": 0.6}, {"layer": "b", "kind": "ReLU", "dead": 0.9})
    (said,) = found(given_outputs=layers)
    assert said.text == "Up to 90% of the units are zero for a whole batch in a, b at step 1."


@pytest.mark.parametrize(("measure", "kind"), [("dead", "ReLU"), ("saturated", "Tanh")])
def test_most_units_of_a_layer_lost(measure, kind):
    layers = outputs(
        {"layer": "a", "kind": kind, measure: 0.9, "step": 1},
        {"layer": "a", "kind": kind, measure: 0.8, "step": 2},
        {"layer": "b", "kind": kind, measure: 0.2, "step": 2},
    )
    (said,) = found(given_outputs=layers)
    assert (said.kind, said.names, said.step, said.numbers) == (measure, ("a",), 2, {"a": 0.8})
    assert said.text.startswith("80% of the ")


def test_update_ratio_is_judged_by_the_late_steps():
    early = [{"step": step, "name": "a", "update_ratio": 0.5} for step in (1, 2, 3, 4)]
    late = [{"step": step, "name": "a", "update_ratio": 1e-3} for step in (5, 6)]
    assert found(parameters(*early, *late)) == []
    (said,) = found(parameters(*early))
    assert (said.kind, said.severity, said.numbers) == ("update_ratio", "warning", {"a": 0.5})
    (said,) = found(parameters({"step": 1, "name": "a", "update_ratio": 1e-9}))
    assert (said.severity, said.text) == ("info", "Each step changes a by less than 1e-06 of their size.")


def walked(name, every, steps, started, to_and_fro):
    """Rows of a parameter that each step changes by 1, from where it started on."""
    rows = []
    for step in range(every, steps + 1, every):
        distance = step**0.5 if to_and_fro else step
        l2 = (started**2 + distance**2) ** 0.5
        measured = {"l2": l2, "rms": l2}
        if step == every or step % 40 == 0:
            measured |= {"distance": distance, "cosine": started / l2 if started else None}
        rows.append({"step": step, "name": name, "update_rms": 1.0, "update_ratio": 1 / l2, **measured})
    return rows


@pytest.mark.parametrize("every", [1, 10, 20])
@pytest.mark.parametrize("steps", [20, 80, 160])
@pytest.mark.parametrize("to_and_fro", [False, True])
def test_parameter_that_starts_at_zero_is_not_judged_by_its_first_steps(every, steps, to_and_fro):
    assert found(parameters(*walked("a", every, steps, 0.0, to_and_fro))) == []


def test_weights_that_steps_blew_up_are_judged_though_they_consist_of_their_steps():
    (said,) = found(parameters(*walked("a", 10, 90, 1e-3, True)))
    assert (said.severity, said.names) == ("warning", ("a",))


def test_parameter_with_a_size_of_its_own_is_judged_from_the_first_step_on():
    (said,) = found(parameters(*walked("a", 1, 3, 1.0, True)))
    assert said.names == ("a",)


@pytest.mark.parametrize(("steps", "kinds"), [(100, []), (110, ["update_ratio"])])
def test_parameter_from_zero_that_its_steps_keep_overturning_is_judged(steps, kinds):
    rows = [
        {"step": step, "name": "a", "rms": 2.0, "l2": 2.0, "distance": 2.0, "update_rms": 1.0, "update_ratio": 0.5}
        for step in range(1, steps + 1)
    ]
    assert [verdict.kind for verdict in found(parameters(*rows))] == kinds


def test_parameter_that_first_moves_late_counts_its_steps_from_there():
    still = [{"step": step, "name": "a", "rms": 0.0, "l2": 0.0, "distance": 0.0, "update_rms": 0.0, "update_ratio": 0.0}
             for step in range(1, 101)]  # fmt: skip
    later = [{**row, "step": row["step"] + 100} for row in walked("a", 1, 50, 0.0, True)]
    assert found(parameters(*still, *later)) == []


@pytest.mark.parametrize(("layers", "enough"), [(3, False), (4, True)])
def test_depth_is_judged_from_four_layers_with_weights_on(layers, enough):
    rows = parameters(*({"step": 1, "name": name} for name in DEEP[:layers]))
    given = outputs(*({"layer": name.removesuffix(".weight")} for name in DEEP))
    judged = depths_judged(rows, given, table(*DEEP))
    assert {of: depth.is_judged for of, depth in judged.items()} == {
        "outputs of the layers": enough, "gradients of the matrices": enough,
    }  # fmt: skip
    assert not any(depth.is_judged for depth in depths_judged(parameters(), outputs()).values())


def test_trainable_parameter_that_never_moves_is_named():
    rows = parameters(
        {"step": 1, "name": "moved"},
        {"step": 1, "name": "still", "update_rms": 0.0, "update_ratio": 0.0},
        {"step": 1, "name": "apart", "update_rms": 0.0, "update_ratio": 0.0, "gradient_rms": None},
        {"step": 1, "name": "frozen", "update_rms": None, "update_ratio": None, "gradient_rms": None},
    )
    names = [*table("moved", "still", "apart"), *table("frozen", trainable=False)]
    said = {verdict.names: verdict.text for verdict in found(rows, given_table=names)}
    assert said == {
        ("apart",): "Though trainable, the loss does not reach apart.",
        ("still",): "Though trainable, no logged step moved still.",
    }


def test_gravest_verdict_comes_first_and_long_lists_are_cut():
    names = [f"p{i}" for i in range(9)]
    rows = parameters(
        *({"step": 1, "name": name, "update_ratio": 0.9} for name in names), {"step": 1, "name": "q", "nonfinite": 1}
    )
    first, second = found(rows)
    assert (first.severity, second.severity) == ("error", "warning")
    assert second.text == "Each step changes p0, p1, p2, p3 and 5 more by more than 0.1 of their size."
    assert second.as_data()["names"] == names


# ---- exact zeros -----------------------------------------------------------------------------------------------------

FOUR = ["a.weight", "b.weight", "c.weight", "head.weight"]


def trained(names, *, at_zero=(), without=(), **change):
    """Rows of one step; those at zero were it before the step."""
    return parameters(
        *(
            {"step": 1, "name": name, "gradient_rms": 0.0 if name in without else 1.0}
            | ({"rms": 1e-3, "update_rms": 1e-3, "update_ratio": 1.0} if name in at_zero else {})
            | change
            for name in names
        )
    )


def zeros(rows, layers=None):
    return [verdict for verdict in found(rows, layers, table(*FOUR)) if verdict.kind == "zero"]


def test_layers_that_give_out_exactly_zero_for_nothing_that_starts_at_zero_are_lost():
    (said,) = zeros(trained(FOUR), outputs(*by_layer(FOUR, rms=[1.0, 0.0, 0.0, 0.0])))
    assert (said.severity, said.names) == ("warning", ("b", "c", "head"))
    assert said.text == "The outputs are exactly 0 in 3 of 4 layers: b, c, head."


def test_layers_that_no_gradient_reaches_are_lost():
    (said,) = zeros(trained(FOUR, without=FOUR[:2]))
    assert (said.severity, said.names) == ("warning", ("a", "b"))
    assert said.text == "No gradient reaches 2 of 4 layers: a, b."


@pytest.mark.parametrize("measured", [{}, {"rms": 0.0, "update_rms": None, "update_ratio": None}], ids=["run", "probe"])
def test_what_stands_before_a_head_that_starts_at_zero_waits_for_it(measured):
    rows = polars.concat([trained(FOUR[:3], without=FOUR[:3]), trained(FOUR[3:], at_zero=FOUR[3:], **measured)])
    (said,) = zeros(rows, outputs(*by_layer(FOUR, rms=[1.0, 1.0, 1.0, 0.0])))
    assert (said.severity, said.names) == ("info", ("a", "b", "c"))
    assert said.text.endswith(": a, b, c; head starts at zero, and they move only once it does.")


@pytest.mark.parametrize(
    ("names", "gates", "waits"),
    [
        pytest.param(["alpha", "fc.weight", "head.weight"], ["alpha"], ["fc.weight"], id="of the model itself"),
        pytest.param(
            ["h.0.alpha", "h.0.fc.weight", "h.1.alpha", "h.1.fc.weight", "head.weight"], ["h.0.alpha", "h.1.alpha"],
            ["h.0.fc.weight", "h.1.fc.weight"], id="of blocks",
        ),
    ],
)  # fmt: skip
def test_what_a_raw_gate_that_starts_at_zero_stands_behind_waits_for_it(names, gates, waits):
    rows = trained(names, at_zero=gates, without=waits)
    (said,) = (verdict for verdict in found(rows, given_table=table(*names)) if verdict.kind == "zero")
    causes = ", ".join(dict.fromkeys(gate.rpartition(".")[0] or gate for gate in gates))
    assert said.severity == "info" and f"; {causes} start" in said.text


def test_branches_that_start_at_zero_say_nothing_of_themselves():
    branches = ["a.weight", "c.weight"]
    assert zeros(trained(FOUR, at_zero=branches), outputs(*by_layer(FOUR, rms=[0.0, 1.0, 0.0, 1.0]))) == []


def test_layers_below_the_first_at_zero_do_not_wait_for_it():
    (said,) = zeros(trained(FOUR, at_zero=FOUR[:1], without=FOUR[1:3]))
    assert (said.severity, said.text) == ("warning", "No gradient reaches 2 of 4 layers: b, c.")


def test_outputs_behind_a_layer_that_starts_at_zero_wait_for_it():
    (said,) = zeros(trained(FOUR, at_zero=["b.weight"]), outputs(*by_layer(FOUR, rms=[1.0, 0.0, 0.0, 1.0])))
    assert (said.severity, said.names) == ("info", ("b", "c"))
    assert said.text.endswith(": b, c; b starts at zero, and they move only once it does.")


def test_most_layers_at_zero_that_wait_for_another_are_a_warning():
    (said,) = zeros(trained(FOUR, at_zero=FOUR, without=FOUR[:3]))
    assert (said.severity, said.names) == ("warning", ("a", "b", "c"))


def test_a_gradient_at_any_logged_step_reaches_the_layer():
    rows = polars.concat([trained(FOUR), trained(FOUR, without=FOUR[:2], step=2)])
    assert zeros(rows) == []


def test_layers_that_no_gradient_reaches_are_not_named_again_as_unmoved():
    rows = trained(FOUR, without=FOUR[:2]).with_columns(
        polars.when(polars.col("gradient_rms") == 0).then(0.0).otherwise("update_rms").alias("update_rms")
    )
    assert [verdict.kind for verdict in found(rows, given_table=table(*FOUR))] == ["zero"]


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("h.0.fc.weight", "h.0.fc"),
        ("scale", ""),
        ("0.parametrizations.weight.original0", "0"),
        ("h.0.parametrizations.weight.0.base", "h.0"),
        ("parametrizations.weight.original", ""),
    ],
)
def test_layer_of_a_parameter(name, layer):
    assert layer_of(name) == layer


def test_depth_is_judged_by_parametrized_layers_and_not_by_their_weights():
    names = [f"{i}.parametrizations.weight.original0" for i in range(10)]
    layers = by_layer(names, rms=[0.5**i for i in range(10)])
    layers += [{"layer": f"{i}.parametrizations.weight", "kind": "ParametrizationList"} for i in range(10)]
    (said,) = found(parameters(*({"step": 1, "name": name} for name in names)), outputs(*layers))
    assert (said.kind, said.names) == ("vanishing", ("0", "9"))


def test_members_of_a_stacked_model_are_told_apart():
    rows = [{"step": 1, "name": "a", "member": 0}, {"step": 1, "name": "a", "member": 1}]
    bad = parameters(rows[0], {**rows[1], "nonfinite": 2, "update_ratio": 0.5})
    nonfinite, ratio = found(bad, given_table=table("a"))
    assert nonfinite.text == "NaN or infinite weights of a [1] at step 1."
    assert nonfinite.numbers == {"a [1]": 2}
    assert ratio.numbers == {"a [1]": 0.5}
    (still,) = found(parameters(rows[0], {**rows[1], "update_rms": 0.0}), given_table=table("a"))
    assert still.names == ("a [1]",)
