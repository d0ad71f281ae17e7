"""Optimizer groups are a partition of the trainable parameters, whatever the model, the freeze rules and the rules.

Each trainable parameter is in exactly one group, a tied one once, a frozen one in none; its settings are what the rules
say one by one; and a model steps with its groups as it would with each parameter's settings alone.
"""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_models import batch, models

import builder
from builder.build import materialise, prove
from builder.groups import group_of, parameter_groups, plan_groups
from builder.names import matches
from builder.optim import make_optimizer

ADAMW = {"_target_": "torch.optim.AdamW", "lr": 0.01, "weight_decay": 0.1}
SETTINGS = st.fixed_dictionaries(
    {}, optional={"lr": st.sampled_from([0.01, 0.02]), "weight_decay": st.sampled_from([0, 0.1, 0.5]),
                  "lr_scale": st.sampled_from([1, 0.5, "=1 / d"])},
).filter(bool)  # fmt: skip
SELECTORS = st.fixed_dictionaries(
    {}, optional={"match": st.sampled_from(["*", "*.weight", "*.bias", "linear*", "block*", "*_0*"]),
                  "max_ndim": st.sampled_from([1, 2]), "kind": st.sampled_from(["Linear", "*Norm*", "Parameter"])},
)  # fmt: skip
RULES = st.lists(st.tuples(SELECTORS, SETTINGS), max_size=4)


def selects(entry, rule):
    """The selector in other words."""
    return (
        matches(entry.name, rule.get("match", "*"))
        and entry.ndim <= rule.get("max_ndim", 9)
        and matches(entry.kind, rule.get("kind", "*"))
    )


def expected(entry, rules, d):
    """A parameter's settings, rule by rule."""
    found = {"lr": 0.01, "weight_decay": 0.1, "lr_scale": 1}
    for selector, given_settings in rules:
        if selects(entry, selector):
            found |= given_settings
    scale = 1 / d if found["lr_scale"] == "=1 / d" else found["lr_scale"]
    return found["lr"] * scale, found["weight_decay"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=models(), rules=RULES, frozen=st.sampled_from([None, "*.bias", "linear*", "*_0*"]))
def test_every_trainable_parameter_is_in_exactly_one_group_with_the_settings_of_its_rules(data, rules, frozen):
    try:
        proof = prove(data, freeze={"some": {"match": frozen}} if frozen else None)
    except builder.BuilderError:
        assume(False)  # the freeze rule matches nothing
    named = {f"rule{number}": {**selector, **given} for number, (selector, given) in enumerate(rules)}
    groups, problems = plan_groups({**ADAMW, "groups": named}, proof)
    if problems:
        assert not groups
        assert all(problem.address.startswith("optimizer.groups.rule") and problem.hint for problem in problems)
        refused = {problem.address.split(".")[2] for problem in problems}
        rules = [rule for number, rule in enumerate(rules) if f"rule{number}" not in refused]
        named = {name: rule for name, rule in named.items() if name not in refused}
        groups, problems = plan_groups({**ADAMW, "groups": named}, proof)
        assert not problems, "each refusal was of a rule that alone was at fault"
    names = [name for group in groups for name in group.names]
    trainable = {entry.name for entry in proof.parameters} - set(proof.ties) - set(proof.frozen)
    assert len(names) == len(set(names)) and set(names) == trainable
    names_in_order = [name for name, _ in proof.meta.named_parameters(remove_duplicate=False)]
    order = list(dict.fromkeys(proof.ties.get(name, name) for name in names_in_order))
    assert all(list(group.names) == sorted(group.names, key=order.index) for group in groups)
    assert len({str(sorted(group.settings.items())) for group in groups}) == len(groups)
    for entry in proof.parameters:
        if entry.name in trainable:
            group = group_of(groups, entry.name)
            found = (group.settings.get("lr", 0.01), group.settings.get("weight_decay", 0.1))
            assert found == expected(entry, rules, 4)
            assert set(group.rules[entry.name]) <= {f"rule{n}" for n in range(4)}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=models(), rules=RULES)
def test_model_steps_with_its_groups_as_each_parameter_would_alone(data, rules):
    named = {f"rule{number}": {**selector, **given} for number, (selector, given) in enumerate(rules)}
    proof = prove(data)
    groups, problems = plan_groups({**ADAMW, "groups": named}, proof)
    assume(not problems)
    model, alone = materialise(proof), materialise(proof)
    single = [{"params": [alone.get_parameter(name)], **group.settings} for group in groups for name in group.names]
    pairs = [
        (model, make_optimizer(ADAMW, parameter_groups(groups, model))),
        (alone, make_optimizer(ADAMW, single)),
    ]
    for module, optimizer in pairs:
        for step in range(2):
            torch.manual_seed(step)
            optimizer.zero_grad()
            module(**batch(step)).square().sum().backward()
            optimizer.step()
    state = alone.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
