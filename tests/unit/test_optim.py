"""Optimizers and schedulers are classes of torch.optim with arguments that run."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from builder.build import materialise, prove
from builder.groups import check_saved_groups, group_of, parameter_groups, plan_groups
from builder.lit_module import plan_run
from builder.optim import OPTIMIZERS, SCHEDULERS, check_optimizer, check_scheduler, make_optimizer, make_scheduler

SGD = {"_target_": "torch.optim.SGD", "lr": 0.1}
STEP = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2}


def test_classes_of_torch_are_known():
    assert {"SGD", "Adam", "AdamW", "LBFGS"} <= set(OPTIMIZERS)
    assert {"StepLR", "CosineAnnealingLR", "OneCycleLR", "ReduceLROnPlateau"} <= set(SCHEDULERS)
    assert "Optimizer" not in OPTIMIZERS and "LRScheduler" not in SCHEDULERS


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"SparseAdam"}))
def test_optimizer_with_its_defaults_is_accepted(name):
    assert check_optimizer({"_target_": f"torch.optim.{name}", "lr": 0.01}) == []


@pytest.mark.parametrize(
    ("change", "address", "what"),
    [
        pytest.param({"_target_": "torch.optim.Sgd"}, "optimizer._target_", "not a class of torch.optim", id="unknown"),
        pytest.param({"_target_": "os.SGD"}, "optimizer._target_", "'os.SGD' is not a class", id="another package"),
        pytest.param({"momentun": 0.9}, "optimizer.momentun", "has no argument", id="misspelt"),
        pytest.param({"params": []}, "optimizer.params", "has no argument", id="parameters are ours"),
        pytest.param({"lr": True}, "optimizer.lr", "got True", id="bool"),
        pytest.param({"lr": float("nan")}, "optimizer.lr", "got nan", id="nan"),
        pytest.param({"lr": -1.0}, "optimizer.lr", "lr is -1.0", id="negative"),
        pytest.param({"momentum": "x"}, "optimizer.momentum", "is a number", id="text"),
        pytest.param({"nesterov": True}, "optimizer", "SGD does not run with", id="refused by torch"),
        pytest.param({"nesterov": "no"}, "optimizer.nesterov", "true or false, got 'no'", id="text for a switch"),
    ],
)
def test_optimizer_is_refused(change, address, what):
    (problem,) = check_optimizer({**SGD, **change})
    assert problem.address == address
    assert what in problem.what


@pytest.mark.parametrize(
    ("config", "address", "what"),
    [
        pytest.param({**STEP, "gama": 1}, "scheduler.gama", "has no argument 'gama'", id="misspelt"),
        pytest.param({**STEP, "interval": "hour"}, "scheduler.interval", "unknown interval", id="interval"),
        pytest.param(
            {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 1, "total_steps": 9, "cycle_momentum": "no"},
            "scheduler.cycle_momentum",
            "true or false, got 'no'",
            id="text for a switch",
        ),
        pytest.param({**STEP, "step_size": "x"}, "scheduler", "StepLR does not run with", id="refused by torch"),
        pytest.param({"_target_": "torch.optim.lr_scheduler.X"}, "scheduler._target_", "not a class", id="unknown"),
        pytest.param(
            {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau"}, "scheduler.monitor", "is missing", id="plateau"
        ),
    ],
)
def test_scheduler_is_refused(config, address, what):
    (problem,) = check_scheduler(config, SGD)
    assert problem.address == address
    assert what in problem.what


def test_schedulers_that_run_are_accepted():
    plateau = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "monitor": "val/loss", "patience": 3}
    assert [check_scheduler(config, SGD) for config in ({}, STEP, plateau)] == [[], [], []]


def test_made_optimizer_and_scheduler_have_what_the_config_says():
    optimizer = make_optimizer({**SGD, "momentum": 0.5}, [nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["momentum"] == 0.5
    made = make_scheduler({**STEP, "interval": "step", "frequency": 3}, optimizer)
    assert (made["interval"], made["frequency"], made["scheduler"].step_size) == ("step", 3, 2)


def test_rehearsal_draws_no_random_number():
    state = torch.get_rng_state()
    assert check_scheduler(STEP, SGD) == check_optimizer(SGD) == []
    assert torch.equal(torch.get_rng_state(), state)


# ---- groups --------------------------------------------------------------------------------------------------------

MODEL = {
    "args": {"d": 4, "depth": 3},
    "inputs": {"x": {"shape": ["batch", "=d"]}},
    "layers": {
        "first": {"kind": "Linear", "in_features": "=d", "out_features": "=d"},
        "h": {"kind": "Linear", "in_features": "=d", "out_features": "=d", "bias": False, "repeat": "=depth"},
        "norm": {"kind": "LayerNorm", "normalized_shape": "=d"},
        "head": {"kind": "Linear", "in_features": "=d", "out_features": "=d", "bias": False},
    },
    "forward": """x = first(x)
for layer in h:
    x = layer(x)
return head(norm(x))""",
    "tie": {"head.weight": "first.weight"},
}
ADAMW = {"_target_": "torch.optim.AdamW", "lr": 0.01, "weight_decay": 0.1}
NAMES = ["first.weight", "first.bias", "h.0.weight", "h.1.weight", "h.2.weight", "norm.weight", "norm.bias"]


def grouped(rules, optimizer=ADAMW, proof=None):
    """Name → settings, from the groups of a plan without problems."""
    groups, problems = plan_groups({**optimizer, "groups": rules}, proof or prove(MODEL))
    assert not problems, problems
    names = [name for group in groups for name in group.names]
    assert len(names) == len(set(names))
    return {name: dict(group.settings) for group in groups for name in group.names}


def test_without_rules_there_is_one_group_in_the_order_of_the_module(given):
    plan = plan_run(given({"model": MODEL, "task": {"batch": ["x"], "loss": "model(x).sum()"}, "optimizer": ADAMW}))
    (group,) = plan.groups
    assert group.names == tuple(NAMES) == tuple(name for name, _ in plan.proof.meta.named_parameters())
    assert group.settings == {}
    assert group_of(plan.groups, "norm.bias") is group and group_of(plan.groups, "head.weight") is None


def test_raw_parameter_declared_last_stands_where_the_module_has_it():
    layers = {**MODEL["layers"], "gain": {"kind": "Parameter", "shape": ["=d"], "init": "ones"}}
    proof = prove({**MODEL, "layers": layers, "forward": "head(first(x)) * gain"})
    (group,), _ = plan_groups(ADAMW, proof)
    assert group.names == tuple(name for name, _ in proof.meta.named_parameters()) == ("gain", *NAMES)


def test_tie_whose_other_name_comes_first_is_in_the_groups_once():
    proof = prove({**MODEL, "tie": {"first.weight": "head.weight"}})
    (group,), _ = plan_groups(ADAMW, proof)
    assert group.names == ("head.weight", *NAMES[1:])


def test_rule_gives_its_settings_to_what_it_matches():
    settings = grouped({"no_decay": {"max_ndim": 1, "weight_decay": 0}})
    assert settings == {name: {"weight_decay": 0} if name in NAMES[1::4] + NAMES[6:] else {} for name in NAMES}


def test_later_rules_win_key_by_key_and_the_multiplier_is_of_the_winning_rate():
    rules = {
        "all": {"lr": 0.1, "weight_decay": 0.3},
        "slow": {"match": "h.*", "lr_scale": 0.5, "weight_decay": 0.2},
        "slower": {"match": ["h.1.*", "h.2.*"], "lr_scale": 0.25},
        "own": {"match": "h.2.*", "lr": 1},
    }
    settings = grouped(rules)
    assert settings["first.bias"] == {"lr": 0.1, "weight_decay": 0.3}
    assert settings["h.0.weight"] == {"lr": 0.05, "weight_decay": 0.2}
    assert settings["h.1.weight"] == {"lr": 0.025, "weight_decay": 0.2}
    assert settings["h.2.weight"] == {"lr": 0.25, "weight_decay": 0.2}
    groups, _ = plan_groups({**ADAMW, "groups": rules}, prove(MODEL))
    assert group_of(groups, "h.2.weight").rules["h.2.weight"] == ("own", "slow", "slower")


def test_layerwise_decay_by_depth():
    settings = grouped({"by_depth": {"match": "h.*", "lr_scale": "=0.8 ** (depth - 1 - i)"}})
    assert [settings[f"h.{i}.weight"].get("lr", 0.01) for i in range(3)] == pytest.approx([0.0064, 0.008, 0.01])
    assert settings["h.2.weight"] == {}, "its multiplier is 1"


def test_expression_may_stand_within_a_list():
    settings = grouped({"h": {"match": "h.*", "betas": [0.9, "=1 - 1 / (d * 10 ** i)"]}})
    assert settings["h.1.weight"] == {"betas": [0.9, 0.975]}


def test_parameters_with_equal_settings_are_one_group_whatever_rules_gave_them():
    rules = {"a": {"match": "h.0.*", "weight_decay": 0}, "b": {"match": "norm.*", "weight_decay": 0.0}}
    groups, _ = plan_groups({**ADAMW, "groups": rules}, prove(MODEL))
    assert [group.names for group in groups] == [
        ("first.weight", "first.bias", "h.1.weight", "h.2.weight"), ("h.0.weight", "norm.weight", "norm.bias"),
    ]  # fmt: skip
    assert groups[1].rules["h.0.weight"] == ("a",) and groups[1].rules["norm.bias"] == ("b",)


def test_setting_that_the_optimizer_has_anyway_makes_no_group():
    assert set(map(str, grouped({"same": {"match": "h.*", "weight_decay": 0.1, "betas": [0.9, 0.999]}}).values())) == {
        "{}"
    }


def test_frozen_parameter_is_in_no_group_and_one_that_thaws_is():
    freeze = {"first": {"match": "first.*"}, "norm": {"match": "norm.*", "until": {"epoch": 3}}}
    settings = grouped({"h": {"match": ["h.*", "first.*"], "weight_decay": 0}}, proof=prove(MODEL, freeze=freeze))
    assert list(settings) == NAMES[2:]


def test_selector_sees_what_is_frozen():
    proof = prove(MODEL, freeze={"first": {"match": "first.*"}})
    settings = grouped({"rest": {"trainable": True, "weight_decay": 0}}, proof=proof)
    assert settings == {name: {"weight_decay": 0} for name in NAMES[2:]}


@pytest.mark.parametrize(
    ("rules", "address", "what", "hint"),
    [
        pytest.param([1], "", "got a list", "{NAME: {match:", id="no mapping"),
        pytest.param({"a": 3}, ".a", "input should be a valid dictionary", "", id="rule that is no mapping"),
        pytest.param(
            {"a": {"match": "encoder.*", "lr": 1}}, ".a", "matches no parameter: match: 'encoder.*'",
            "the model has: first.weight", id="matches nothing",
        ),
        pytest.param({"a": {"match": "h.*"}}, ".a", "sets nothing", "weight_decay: 0", id="sets nothing"),
        pytest.param(
            {"a": {"match": "head.*", "lr": 1}}, ".a", "'head.weight' is tied to 'first.weight'",
            "address 'first.weight'", id="alias alone",
        ),
        pytest.param(
            {"a": {"match": "norm.bias", "lr": 1}}, ".a", "all that it matches is frozen by freeze.bias", "remove it",
            id="frozen alone",
        ),
        pytest.param(
            {"a": {"trainable": False, "lr": 1}}, ".a", "all that it matches is frozen by freeze.bias", "remove it",
            id="what is not trainable",
        ),
        pytest.param(
            {"a": {"match": "h.*", "lr": 1}, "b": {"lr": 2}}, ".a", "later rules decide all that it sets",
            "put it after", id="decides nothing",
        ),
        pytest.param(
            {"a": {"mach": "h.*", "lr": 1}}, ".a.mach", "neither a selector nor a setting of AdamW",
            "did you mean 'match'?", id="misspelt selector",
        ),
        pytest.param(
            {"a": {"weight_deca": 1}}, ".a.weight_deca", "neither a selector nor a setting of AdamW",
            "did you mean 'weight_decay'?", id="misspelt setting",
        ),
        pytest.param(
            {"a": {"momentum": 0.5}}, ".a.momentum", "neither a selector nor a setting of AdamW", "known: amsgrad",
            id="setting of another optimizer",
        ),
        pytest.param({"a": {"min_ndim": -1, "lr": 1}}, ".a.min_ndim", "greater than or equal to 0", "", id="selector"),
        pytest.param({"a": {"lr": True}}, ".a.lr", "got True", "0.001", id="bool for a number"),
        pytest.param({"a": {"lr_scale": -1}}, ".a.lr_scale", "lr_scale is -1", "zero or more", id="negative"),
        pytest.param({"a": {"lr_scale": "2"}}, ".a.lr_scale", "got '2'", "0.001", id="text for a multiplier"),
        pytest.param({"a": {"lr_scale": "=2e300 * 2e300"}}, ".a.lr_scale", "got inf", "0.001", id="no finite number"),
        pytest.param(
            {"a": {"lr": "=0.1 / dept"}}, ".a.lr", "unknown name 'dept'", "did you mean 'depth'?", id="unknown name"
        ),
        pytest.param(
            {"a": {"match": ["h.*", "norm.*"], "lr_scale": "=0.5 ** i"}}, ".a.lr_scale",
            "needs `i`, the first whole number of a name: there is none in 'norm.weight'", "match: 'h.*'",
            id="a name without a number",
        ),
        pytest.param({"a": {"betas": [0.9, 2]}}, ".a.betas", "Invalid beta parameter", "mend", id="refused by torch"),
        pytest.param(
            {"a": {"match": "h.*", "betas": [0.9, 2]}, "b": {"match": "h.0.weight", "weight_decay": 0}}, ".a.betas",
            "Invalid beta parameter", "mend", id="refused by torch, beside a good setting of a later rule",
        ),
        pytest.param({"a": {"amsgrad": "no"}}, ".a.amsgrad", "true or false, got 'no'", "write true", id="a text"),
    ],
)  # fmt: skip
def test_rule_of_a_group_is_refused(rules, address, what, hint):
    proof = prove(MODEL, freeze={"bias": {"match": "norm.bias"}})
    _, (problem,) = plan_groups({**ADAMW, "groups": rules}, proof)
    assert problem.address == f"optimizer.groups{address}"
    assert what in problem.what
    assert hint in problem.hint


def test_rules_of_groups_are_refused_all_at_once_and_before_memory(refusal):
    rules = {"a": {"match": "x", "lr": 1}, "b": {"lrr": 1}, "c": {"lr_scale": "=0.5**i"}, "d": {"match": "h.*"}}
    optimizer = {**ADAMW, "groups": rules}
    _, problems = plan_groups(optimizer, prove(MODEL))
    assert sorted(problem.address for problem in problems) == [
        "optimizer.groups.a", "optimizer.groups.b.lrr", "optimizer.groups.c.lr_scale", "optimizer.groups.d",
    ]  # fmt: skip
    config = {"model": MODEL, "task": {"batch": ["x"], "loss": "model(x).sum()"}, "optimizer": optimizer}
    assert refusal(plan_run, config).address.startswith("optimizer.groups.")


@pytest.mark.parametrize(
    ("optimizer", "rules", "what"),
    [
        pytest.param("LBFGS", {"a": {"match": "h.*", "lr": 1}}, "doesn't support per-parameter options", id="LBFGS"),
        pytest.param("Muon", {}, "only supports 2D parameters", id="Muon and a bias"),
    ],
)
def test_optimizer_that_does_not_take_these_groups_is_refused(optimizer, rules, what):
    _, (problem,) = plan_groups({"_target_": f"torch.optim.{optimizer}", "lr": 0.1, "groups": rules}, prove(MODEL))
    assert problem.address == "optimizer"
    assert what in problem.what


def test_fused_optimizer_is_planned_on_meta():
    assert grouped({"a": {"match": "h.*", "lr": 1}}, {**ADAMW, "fused": True})["h.0.weight"] == {"lr": 1}


def scaled(*names):
    """A proof in which `mup` decides some parameters."""
    proof = prove(MODEL)
    decisions = dict(proof.decisions)
    for name in names:
        arguments = {"lr_scales": {"adam": 0.25, "sgd": 4.0}}
        decisions[name] = replace(decisions[name], rule="init.mup", policy="mup", arguments=arguments)
    return replace(proof, decisions=decisions)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        pytest.param(ADAMW, {"h.0.weight": 0.0025, "h.1.weight": 0.0025 / 2, "h.2.weight": 0.005}, id="AdamW"),
        pytest.param(SGD, {"h.0.weight": 0.4, "h.1.weight": 0.2, "h.2.weight": 0.05}, id="SGD"),
    ],
)
def test_multiplier_of_mup_comes_on_top_of_that_of_a_rule(optimizer, expected):
    rules = {"half": {"match": ["h.1.*", "h.2.*"], "lr_scale": 0.5}}
    settings = grouped(rules, optimizer, scaled("h.0.weight", "h.1.weight"))
    assert {name: settings[name]["lr"] for name in expected} == pytest.approx(expected)
    groups, _ = plan_groups({**optimizer, "groups": rules}, scaled("h.0.weight", "h.1.weight"))
    assert group_of(groups, "h.1.weight").rules["h.1.weight"] == ("half", "init.mup")


def test_optimizer_without_learning_rates_for_mup_is_refused():
    _, (problem,) = plan_groups({"_target_": "torch.optim.LBFGS"}, scaled("h.0.weight"))
    assert problem.address == "optimizer._target_"
    assert "init.mup is mup, which has no learning rates for LBFGS" in problem.what
    assert "AdamW" in problem.hint and "SGD" in problem.hint


def test_setting_that_torch_refuses_is_told_of_its_rule_where_mup_scales_the_rate():
    rules = {"mine": {"match": "h.0.weight", "betas": [0.9, 2]}}
    _, (problem,) = plan_groups({**ADAMW, "groups": rules}, scaled("h.0.weight", "h.1.weight"))
    assert problem.address == "optimizer.groups.mine.betas"
    assert "Invalid beta parameter" in problem.what


def test_torch_is_given_each_trainable_parameter_once_with_its_name():
    proof = prove(MODEL, freeze={"bias": {"match": "norm.bias"}})
    groups, _ = plan_groups({**ADAMW, "groups": {"h": {"match": "h.*", "weight_decay": 0}}}, proof)
    model = materialise(proof)
    optimizer = make_optimizer({**ADAMW, "groups": {}}, parameter_groups(groups, model))
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["first.weight", "first.bias", "norm.weight"], ["h.0.weight", "h.1.weight", "h.2.weight"],
    ]  # fmt: skip
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0]
    named = dict(model.named_parameters())
    for group in optimizer.param_groups:
        assert all(named[name] is p for name, p in zip(group["param_names"], group["params"], strict=True))


def test_parameter_that_came_after_the_proof_is_refused(refusal):
    proof = prove(MODEL)
    groups, _ = plan_groups(ADAMW, proof)
    model = materialise(proof)
    model.extra = nn.Parameter(torch.zeros(1))
    problem = refusal(parameter_groups, groups, model)
    assert problem.address == "extra"
    assert "in no group of the optimizer" in problem.what
    assert "declare it" in problem.hint


def test_checkpoint_of_other_groups_is_refused():
    proof = prove(MODEL)
    plain, _ = plan_groups(ADAMW, proof)
    split, _ = plan_groups({**ADAMW, "groups": {"h": {"match": "h.*", "weight_decay": 0}}}, proof)
    saved = make_optimizer(ADAMW, parameter_groups(split, materialise(proof))).state_dict()["param_groups"]
    assert check_saved_groups(saved, split) == []
    (problem,) = check_saved_groups(saved, plain)
    assert problem.address == "ckpt_path"
    assert "2 groups of other parameters: h.0.weight" in problem.what
    assert "optimizer.groups" in problem.hint
    unnamed = [{"params": [0, 1]}]
    assert check_saved_groups(unnamed, plain) == [], "torch itself compares the sizes of groups without names"


# ---- schedulers and groups -----------------------------------------------------------------------------------------

GROUPS = [{}, {"lr": 0.05}, {"lr": 0.2, "weight_decay": 0.5}]  # beside SGD's own 0.1


def rates(scheduler, steps, groups=GROUPS):
    """The learning rate of each group at each step."""
    optimizer = make_optimizer(SGD, [{"params": [nn.Parameter(torch.zeros(1))], **group} for group in groups])
    moves = make_scheduler({"_target_": f"torch.optim.lr_scheduler.{scheduler.pop('of')}", **scheduler}, optimizer)
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        moves["scheduler"].step(*([1.0] if "patience" in scheduler else []))
    return torch.tensor(found)


@pytest.mark.parametrize(
    "scheduler",
    [
        pytest.param({"of": "StepLR", "step_size": 2}, id="StepLR"),
        pytest.param({"of": "CosineAnnealingLR", "T_max": 10}, id="CosineAnnealingLR"),
        pytest.param({"of": "OneCycleLR", "max_lr": 0.3, "total_steps": 10, "cycle_momentum": False}, id="OneCycleLR"),
        pytest.param(
            {"of": "CyclicLR", "base_lr": 0.1, "max_lr": 0.3, "step_size_up": 3, "cycle_momentum": False}, id="CyclicLR"
        ),
        pytest.param({"of": "ReduceLROnPlateau", "patience": 1}, id="ReduceLROnPlateau"),
        pytest.param(
            {"of": "ReduceLROnPlateau", "patience": 0, "factor": 0.5, "min_lr": 0.04},
            id="ReduceLROnPlateau to its floor",
        ),
    ],
)
def test_scheduler_moves_every_group_in_proportion(scheduler):
    alone = rates(dict(scheduler), 9, [{}])
    assert len(alone.unique()) > 2
    torch.testing.assert_close(rates(scheduler, 9), alone * torch.tensor([1.0, 0.5, 2.0]))


ETA = {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": 10, "eta_min": 0.06}


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "CosineAnnealingWarmRestarts"])
def test_floor_under_groups_of_unequal_rates_is_refused(name):
    """Torch would let the rate of a group below the floor rise to it."""
    floor = {"_target_": f"torch.optim.lr_scheduler.{name}", "eta_min": 0.06}
    floor["T_max" if name == "CosineAnnealingLR" else "T_0"] = 10
    (problem,) = check_scheduler(floor, SGD, GROUPS)
    assert problem.address == "scheduler.eta_min"
    assert "0.06, one rate for all groups" in problem.what
    assert "eta_min: 0" in problem.hint
    for fine in (floor, {**floor, "eta_min": 0.0}):
        assert check_scheduler(fine, SGD, [{}, {"weight_decay": 0.5}]) == [], "one rate for all"
    assert check_scheduler({**floor, "eta_min": 0.0}, SGD, GROUPS) == []


@pytest.mark.parametrize(("key", "value"), [("eta_min", -1), ("eta_min", "low"), ("min_lr", -0.1)])
def test_floor_that_is_no_rate_is_refused(key, value):
    of = {"eta_min": ETA, "min_lr": {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "monitor": "val/loss"}}
    assert [problem.address for problem in check_scheduler({**of[key], key: value}, SGD)] == [f"scheduler.{key}"]


def test_cycle_without_a_rate_to_be_in_proportion_to_is_refused():
    cycle = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.3, "total_steps": 10}
    (problem,) = check_scheduler(cycle, {**SGD, "lr": 0.0}, [{}, {"lr": 0.5}])
    assert problem.address == "scheduler"
    assert "optimizer.lr is 0" in problem.what
