"""Arguments of the callback and the config group that holds them."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch import nn

from builder.errors import BuilderError
from builder.stats.callback import ParameterStatistics
from builder.stats.settings import check_outputs, parameters_of, selector

CONF = Path(__file__).parents[3] / "conf" / "stats"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"every_n_steps": 0}, r"stats\.every_n_steps: must be .* at least 1, given 0", id="zero"),
        pytest.param({"every_n_steps": True}, r"stats\.every_n_steps: .* given True", id="a bool is not a number"),
        pytest.param({"every_n_steps": 2.5}, r"stats\.every_n_steps: .* given 2\.5", id="half a step"),
        pytest.param({"flush_every": -1}, r"stats\.flush_every: .* given -1", id="negative flush"),
        pytest.param({"slower_every": 0}, r"stats\.slower_every: .* given 0", id="never slower"),
        pytest.param({"effective_rank": 0}, r"stats\.effective_rank: .* given 0", id="rank of nothing"),
        pytest.param({"max_overhead": 0}, r"stats\.max_overhead: must be above 0 .* given 0\n.*2 %", id="no time"),
        pytest.param({"max_overhead": 2}, r"stats\.max_overhead: .* given 2\n", id="twice the time"),
        pytest.param({"max_overhead": True}, r"stats\.max_overhead: .* given True\n", id="a bool is not a share"),
        pytest.param({"distance": 1}, r"stats\.distance: must be true or false, given 1", id="a number is not a bool"),
        pytest.param({"spectral_norm": "yes"}, r"stats\.spectral_norm: .* given 'yes'", id="a word is not a bool"),
        pytest.param({"outputs": 3}, r"stats\.outputs: must be a glob .* given 3\n.*every layer", id="outputs"),
        pytest.param({"outputs": [3]}, r"stats\.outputs: must be a glob", id="a list of numbers"),
        pytest.param({"to_loggers": ["rsm"]}, r"stats\.to_loggers: unknown measure 'rsm'\n.*'rms'", id="measure"),
        pytest.param({"to_loggers": ["histogram"]}, r"stats\.to_loggers: unknown .*'histogram'", id="not one number"),
        pytest.param({"to_loggers": "rms"}, r"stats\.to_loggers: must be a list .*\n.*\[rms\]", id="not a list"),
        pytest.param({"to_loggers": None}, r"stats\.to_loggers: must be a list .* given None\n.*\[\]: none", id="null"),
        pytest.param({"to_loggers": 3}, r"stats\.to_loggers: must be a list .* given 3\n", id="a number of measures"),
        pytest.param({"directory": 3}, r"stats\.directory: must be a path, given 3\n", id="a number for a path"),
        pytest.param(
            {"select": "fc1*"}, r"stats\.select: must be a selector, given 'fc1\*'\n.*\{match: 'fc1\*'\}", id="a glob"
        ),
        pytest.param({"select": 3}, r"stats\.select: must be a selector, given 3\n.*\{match: GLOB\}", id="a number"),
        pytest.param({"select": {"mach": "*"}}, r"stats\.select\.mach: .*\n.*did you mean 'match'", id="selector key"),
        pytest.param({"select": {"ndim": "two"}}, r"stats\.select\.ndim: .* given 'two'", id="selector value"),
    ],
)
@pytest.mark.parametrize("wrap", [pytest.param(dict, id="dict"), pytest.param(OmegaConf.create, id="DictConfig")])
def test_a_bad_argument_is_named_by_its_address(arguments, message, wrap):
    given = wrap(arguments)
    before = OmegaConf.to_container(OmegaConf.create(arguments))
    with pytest.raises(BuilderError, match=message):
        ParameterStatistics(**{key: given[key] for key in given})
    assert arguments == before


@pytest.mark.parametrize("match", [3, ["a", 3]])
def test_a_bad_value_of_a_selector_is_told_once(match):
    with pytest.raises(BuilderError) as raised:
        ParameterStatistics(select={"match": match})
    assert [problem.address for problem in raised.value.problems] == ["stats.select.match"]


def two_layers():
    model = nn.Sequential()
    model.fc1, model.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
    return model


@pytest.mark.parametrize(
    ("select", "hint"),
    [
        pytest.param(
            {"min_ndim": 3}, "without min_ndim it matches fc1.weight, fc1.bias, norm.weight, norm.bias", id="ndim"
        ),
        pytest.param({"match": "norm.*", "ndim": 2}, "without match it matches fc1.weight\nwithout ndim it", id="both"),
        pytest.param({"except": "*"}, "without except it matches fc1.weight, ", id="all left out"),
        pytest.param({"match": "fc11.bias"}, "did you mean 'fc1.bias'?", id="a misspelt name"),
        pytest.param({"match": "fc9.*", "ndim": 3}, "known: fc1.bias, fc1.weight", id="two fields that match nothing"),
    ],
)  # fmt: skip
def test_a_selector_that_matches_nothing_is_told_which_field_leaves_nothing(select, hint):
    with pytest.raises(BuilderError, match="matches no parameter") as raised:
        parameters_of(two_layers(), selector(select))
    assert hint in raised.value.problems[0].hint


def test_globs_of_outputs_that_match_no_layer_are_refused():
    with pytest.raises(BuilderError) as raised:
        check_outputs(two_layers(), ("fc1", "fc11", "nrom", "fc1.rleu()"))
    assert [problem.address for problem in raised.value.problems] == ["stats.outputs"] * 3
    assert "'fc11' matches no layer" in raised.value.problems[0].what
    assert "did you mean 'norm'?" in raised.value.problems[1].hint


@pytest.mark.parametrize("patterns", ["*", "fc1", ("fc1", "no*"), "relu()", "fc1.relu()", "*.tanh()", ()])
def test_globs_of_outputs_that_match_a_layer_or_may_match_a_function_pass(patterns):
    check_outputs(two_layers(), patterns)


def test_every_layer_of_a_model_without_layers_is_no_mistake():
    check_outputs(nn.Linear(2, 2), "*")
    with pytest.raises(BuilderError, match=r"'fc' matches no layer\n.*there is none"):
        check_outputs(nn.Linear(2, 2), "fc")


def test_all_bad_arguments_are_told_at_once():
    with pytest.raises(BuilderError) as raised:
        ParameterStatistics(every_n_steps=0, flush_every=0, to_loggers=["x"])
    assert len(raised.value.problems) == 3


def test_a_selector_may_hold_lists_in_a_dictconfig():
    select = OmegaConf.create({"match": ["a", "b"], "except": ["c"]})
    assert ParameterStatistics(select=select)._selector.match == ("a", "b")


def test_the_default_group_gives_the_default_arguments():
    conf = dict(OmegaConf.load(CONF / "default.yaml"))
    assert conf.pop("enabled") is True
    assert conf.pop("on_nonfinite") == "stop"  # of another callback
    given, default = ParameterStatistics(**conf), ParameterStatistics()
    names = (
        "_every", "_flush_every", "_to_loggers", "_patterns", "_slower_every", "_distance", "_spectral_norm",
        "_effective_rank", "_max_overhead", "_stacked",
    )  # fmt: skip
    for name in names:
        assert getattr(given, name) == getattr(default, name)
    assert given._selector.model_dump() == default._selector.model_dump()


def test_the_none_group_turns_statistics_off():
    assert OmegaConf.load(CONF / "none.yaml") == {"enabled": False, "every_n_steps": 50, "on_nonfinite": "stop"}
