"""Arguments of the callback and the config group that holds them."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from builder.errors import BuilderError
from builder.stats.callback import ParameterStatistics

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
    assert OmegaConf.load(CONF / "none.yaml") == {"enabled": False}
