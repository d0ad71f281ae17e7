"""The selector that every rule uses, and the message that a user reads."""

from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from builder.errors import BuilderError, Problem, at, did_you_mean, raise_all
from builder.names import Selector


@dataclass
class Parameter:
    name: str = "h.0.mlp.c_proj.weight"
    kind: str = "Linear"
    ndim: int = 2
    trainable: bool = True


@pytest.mark.parametrize(
    ("fields", "chosen"),
    [
        pytest.param({}, True, id="everything by default"),
        pytest.param({"match": "h.*.weight"}, True, id="a star crosses dots"),
        pytest.param({"match": "weight"}, False, id="a pattern fits the whole name"),
        pytest.param({"match": ["x", "*.weight"]}, True, id="one of several"),
        pytest.param({"match": "*.WEIGHT"}, False, id="case matters"),
        pytest.param({"match": "*", "except": "h.0.*"}, False, id="except"),
        pytest.param({"kind": "Linear"}, True, id="kind"),
        pytest.param({"kind": ["Conv*", "Embedding"]}, False, id="several kinds"),
        pytest.param({"ndim": 1}, False, id="exact dimensions"),
        pytest.param({"min_ndim": 2, "max_ndim": 2}, True, id="a range of dimensions"),
        pytest.param({"max_ndim": 1}, False, id="too many dimensions"),
        pytest.param({"trainable": False}, False, id="only frozen"),
    ],
)
def test_selector_chooses_where_every_field_holds(fields, chosen):
    assert Selector.model_validate(fields).selects(Parameter()) is chosen


@pytest.mark.parametrize("fields", [{"mach": "*"}, {"ndim": True}, {"ndim": -1}, {"trainable": "no"}])
def test_selector_refuses_unknown_fields_and_wrong_types(fields):
    with pytest.raises(ValidationError):
        Selector.model_validate(fields)


def test_message_has_count_address_place_cause_and_hint():
    error = BuilderError(
        "model gpt.yaml", [Problem("layers.a", "wrong", "do this\nor that", "gpt.yaml:3"), Problem("b", "bad")]
    )
    assert str(error).splitlines() == [
        "model gpt.yaml: 2 problems",
        "  layers.a (gpt.yaml:3): wrong",
        "      do this",
        "      or that",
        "  b: bad",
    ]


def test_same_problem_is_reported_once_and_none_raises_nothing():
    raise_all("model", [])
    with pytest.raises(BuilderError, match="1 problem\n"):
        raise_all("model", [Problem("a", "bad")] * 3)


def test_place_is_filled_once():
    assert at(at(Problem("a", "b"), "line 1"), "line 2").place == "line 1"


@pytest.mark.parametrize("given", ["kaimng", 3, None, ""])
def test_hint_names_known_words_for_anything_given(given):
    assert "known: kaiming, zeros" in did_you_mean(given, ["zeros", "kaiming"])
