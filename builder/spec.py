"""What a model file may say, as validated, frozen data.

A `ModelSpec` is the whole file; nothing is computed here and torch is not needed. Unknown keys, wrong types and
names that could not be attributes of a module are refused, all at once.
"""

# ruff: noqa: SIM905 (words in a block of text read better than a list of a hundred strings)

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
    model_validator,
)

from builder.errors import Problem, did_you_mean
from builder.language import RESERVED
from builder.names import Selector

# Public attributes of nn.Module (torch 2.13): a layer of that name would hide one.
MODULE_ATTRIBUTES = frozenset(
    """
    T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches eval
    extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict modules
    mtia named_buffers named_children named_modules named_parameters parameters register_backward_hook register_buffer
    register_forward_hook register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook
    register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module register_parameter
    register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory
    state_dict to to_empty train training type xpu zero_grad
    """.split()
)


def _identifier(name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"name {name!r} is of type {type(name).__name__}\nput the name in quotes")
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise ValueError(
            f"name {name!r} cannot be an attribute\nuse letters, digits and underscores, beginning with a letter"
        )
    if name in RESERVED:
        raise ValueError(f"name {name!r} has a meaning in the generated source\nchoose another")
    if name in MODULE_ATTRIBUTES:
        raise ValueError(f"name {name!r} would hide torch.nn.Module.{name}\nchoose another")
    return name


Name = Annotated[str, BeforeValidator(_identifier)]
RuleName = Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")]
Expression = Annotated[str, Field(pattern=r"^=", description="An `=` expression over args.")]
Axis = Literal["in", "out", "field"]
DType = Literal[
    "float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool", "complex64"
]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def _number_or_text(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is a {type(value).__name__}\na size is a number, an `=` expression or a name")
    return value


StrictIntOrText = Annotated[int | str, BeforeValidator(_number_or_text)]


def _count(value: object) -> object:
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, str) and value.startswith("="))):
        raise ValueError(f"{value!r} is a {type(value).__name__}\na count is a whole number or an `=` expression")
    return value


def _condition(value: object) -> object:
    if not isinstance(value, bool) and not (isinstance(value, str) and value.startswith("=")):
        raise ValueError(f"{value!r} is a {type(value).__name__}\na condition is true, false or an `=` expression")
    return value


class InputSpec(_Data):
    """One tensor that `forward` takes."""

    shape: tuple[StrictIntOrText, ...] | None = Field(
        None, description="Sizes: numbers, `=` expressions, or names of symbolic dimensions such as `batch`."
    )
    dtype: DType = Field("float32", description="Element type.")
    range: tuple[Any, Any] | None = Field(None, description="Least value and the bound it stays below, as for indices.")
    default: StrictBool | StrictInt | StrictFloat | None = Field(
        None, description="What an input is that is not given; a number or a bool makes it a plain value, not a tensor."
    )

    @property
    def is_optional(self) -> bool:
        """Whether it may be left out."""
        return "default" in self.model_fields_set

    @property
    def is_plain(self) -> bool:
        """Whether it is a number or a bool rather than a tensor."""
        return self.default is not None


class PolicySpec(BaseModel):
    """An init policy with its arguments: `{policy: normal, std: 0.02}`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    policy: str = Field(description="Name of the policy, as in torch.nn.init without the underscore.")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        if isinstance(value, str):
            return {"policy": value}
        if isinstance(value, Mapping):
            return value
        raise ValueError(f"{value!r} is a {type(value).__name__}\ngive a policy's name, or {{policy: NAME, ...}}")

    @property
    def arguments(self) -> dict[str, Any]:
        """The policy's own arguments."""
        return dict(self.__pydantic_extra__ or {})


class InitRule(Selector):
    """A named init rule: a selector, a policy and the policy's arguments."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    policy: str = Field(description="Name of the policy, as in torch.nn.init without the underscore.")
    axes: tuple[Axis, ...] | None = Field(
        None, description="Which axis is fan-in and which fan-out, where torch.nn.init reads them wrongly."
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """The policy's own arguments."""
        return dict(self.__pydantic_extra__ or {})


class Moment(_Data):
    """The start of an epoch or of an optimizer step, both counted from 0."""

    epoch: StrictInt | None = Field(None, ge=0, description="Epochs that were finished before.")
    step: StrictInt | None = Field(None, ge=0, description="Optimizer steps that were taken before.")

    @model_validator(mode="before")
    @classmethod
    def _one_unit(cls, value: object) -> object:
        written = "write {epoch: 3}, or {step: 100}"
        if not isinstance(value, Mapping):
            raise ValueError(f"{value!r} is a {type(value).__name__}\n{written}")
        unknown = [key for key in value if key not in ("epoch", "step")]
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}\n{did_you_mean(unknown[0], ['epoch', 'step'])}")
        if len(value) != 1:
            raise ValueError(f"{'epoch and step together' if value else 'neither epoch nor step'}\n{written}")
        [(unit, count)] = value.items()
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"{unit} is {count!r}\na whole number, zero or more")
        return dict(value)

    @property
    def unit(self) -> Literal["epoch", "step"]:
        """What it counts."""
        return "step" if self.epoch is None else "epoch"

    @property
    def count(self) -> int:
        """How many of them."""
        counted = self.step if self.epoch is None else self.epoch
        assert counted is not None, "a moment has one unit"
        return counted


def _rows(value: object) -> object:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"got {value!r}\nrows are [low, high], counted from 0 along the first axis, high left out")
    for bound in value:
        if isinstance(bound, bool) or not (isinstance(bound, int) or (isinstance(bound, str) and bound[:1] == "=")):
            raise ValueError(f"{bound!r} is a {type(bound).__name__}\na row is a whole number or an `=` expression")
    return tuple(value)


class FreezeRule(Selector):
    """A named freeze rule: what keeps its values, and when."""

    rows: Annotated[tuple[StrictInt | Expression, StrictInt | Expression] | None, BeforeValidator(_rows)] = Field(
        None, description="[low, high]: these rows alone along the first axis, high left out; by default all."
    )
    eval: StrictBool = Field(
        False, description="Whether the modules stay in eval mode too: no new running statistics, no dropout."
    )
    from_: Moment | None = Field(None, alias="from", description="Frozen from here on; by default from the start.")
    until: Moment | None = Field(None, description="Frozen until here; by default for ever.")

    @model_validator(mode="after")
    def _in_order(self) -> FreezeRule:
        if self.until is None:
            return self
        start, end = self.from_, self.until
        if start is not None and start.unit != end.unit:
            raise ValueError(f"from counts {start.unit}s and until counts {end.unit}s\ncount both in one unit")
        if end.count <= (start.count if start else 0):
            raise ValueError(
                f"freezes nothing: until {end.unit} {end.count} is not after from {end.unit} "
                f"{start.count if start else 0}\nraise until, or remove the rule"
            )
        return self


class LayerSpec(BaseModel):
    """One layer: its kind, how often it stands, and the arguments of its class."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    kind: str = Field(description="Parameter, a public class of torch.nn, Sequential, or a block of this file.")
    repeat: Annotated[StrictInt | Expression, BeforeValidator(_count)] | None = Field(
        None, description="Makes a list of so many; `i` is the index within it."
    )
    when: Annotated[StrictBool | Expression, BeforeValidator(_condition)] | None = Field(
        None, description="Makes the layer only where this holds; it is None where it does not."
    )
    layers: dict[Name, LayerSpec] | tuple[LayerSpec, ...] | None = Field(
        None, description="The layers of a Sequential, by name or in a list."
    )
    init: PolicySpec | dict[str, PolicySpec] | None = Field(
        None, description="Policy of a raw Parameter, or a mapping from the layer's own parameters to policies."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_init(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            raise ValueError(f"{value!r} is not a layer\na layer is {{kind: ..., ...}}")
        init = value.get("init")
        if isinstance(init, str) or (isinstance(init, Mapping) and "policy" in init):
            return {**value, "init": PolicySpec.model_validate(init)}
        return dict(value)

    @model_validator(mode="after")
    def _check(self) -> LayerSpec:
        for key in self.arguments:
            if not key.isidentifier() or keyword.iskeyword(key) or key.startswith("_"):
                raise ValueError(
                    f"argument {key!r} is not a name\n"
                    "an argument is written name: value; inside {...} YAML ends a value at a comma: put it in quotes"
                )
        if (self.kind == "Sequential") != (self.layers is not None):
            raise ValueError(
                "a Sequential, and no other kind, has layers of its own\ngive kind: Sequential, layers: {...}"
            )
        if self.kind == "Sequential" and (self.arguments or self.init is not None or not self.layers):
            extra = next(iter(self.arguments), "init" if self.init is not None else "")
            what = f"a Sequential takes no {extra!r}" if extra else "a Sequential without layers"
            raise ValueError(f"{what}\ngive layers: {{NAME: {{kind: ...}}}}, or a list of layers")
        if self.kind == "Parameter":
            unknown = sorted(set(self.arguments) - {"shape", "axes", "dtype"})
            if unknown:
                hint = did_you_mean(unknown[0], ["shape", "axes", "dtype", "init", "repeat"])
                raise ValueError(f"unknown key {unknown[0]!r} of a Parameter\n{hint}")
            if not isinstance(self.arguments.get("shape"), list | tuple | str):
                raise ValueError("a Parameter needs a shape\ngive shape: [=rows, =columns]; [] is a single number")
            if self.repeat is not None and self.when is not None:
                raise ValueError("a list of Parameters has all of them\ntake out when, or repeat a block")
            if isinstance(self.init, dict):
                raise ValueError(
                    "a Parameter takes one policy\ngive init: normal, or init: {policy: normal, std: 0.02}"
                )
        return self

    @property
    def children(self) -> dict[str, LayerSpec]:
        """The layers of a Sequential by name; those of a list are called by their numbers."""
        inner = self.layers or {}
        return dict(inner) if isinstance(inner, Mapping) else {str(i): layer for i, layer in enumerate(inner)}

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the layer's class, as they stand in the file."""
        return dict(self.__pydantic_extra__ or {})


class BufferSpec(_Data):
    """A tensor that is not trained."""

    value: Any = Field(description="A number, a list, or an `=` expression of tensors.")
    persistent: StrictBool = Field(True, description="Whether it is saved in the state_dict.")
    dtype: DType | None = Field(None, description="Element type; by default that of the value.")


class TieSpec(_Data):
    """What a tied name stands for: `wte.weight`, or `{source: wte.weight, transpose: true}`."""

    source: str = Field(description="Dotted name of the parameter that owns the values.")
    transpose: StrictBool = Field(False, description="Whether the name stands for the owner's transpose.")


def _named_source(value: object) -> object:
    if isinstance(value, str):
        return {"source": value}
    if isinstance(value, Mapping | TieSpec):
        return value
    raise ValueError(
        f"{value!r} is a {type(value).__name__}\ngive the owner's name, or {{source: NAME, transpose: true}}"
    )


def _named_inputs(value: object) -> object:
    if isinstance(value, list | tuple):
        return {name: {} for name in value}
    if isinstance(value, Mapping):
        return {name: {} if spec is None else spec for name, spec in value.items()}
    return value


def _named_args(value: object) -> object:
    if isinstance(value, list | tuple):
        return {name: REQUIRED if isinstance(name, str) else None for name in value}
    return value


REQUIRED = "???"  # an argument without a default, spelt as in OmegaConf

Args = Annotated[dict[Name, Any], BeforeValidator(_named_args)]
Tie = Annotated[TieSpec, BeforeValidator(_named_source)]
Inputs = Annotated[dict[Name, InputSpec], BeforeValidator(_named_inputs)]


def _printable(text: str) -> str:
    if not text.strip() or not all(line.isprintable() for line in text.split("\n")):
        raise ValueError("is empty, or has characters that cannot be printed\nsay in a sentence what it is")
    return text


class _WrongPart(ValueError):
    """What is wrong with one part of a model, found where its parts are compared."""

    def __init__(self, address: str, what: str) -> None:
        super().__init__(what)
        self.address = address


class BlockSpec(_Data):
    """A reusable piece: a model with arguments."""

    doc: Annotated[str, AfterValidator(_printable)] | None = Field(
        None, description="What it is, in a sentence or more: the docstring of its class."
    )
    args: Args = Field(default_factory=dict, description="Names, or names with defaults.")
    inputs: Inputs = Field(default_factory=dict, description="What forward takes.")
    layers: dict[Name, LayerSpec] = Field(default_factory=dict, description="Layers by name, in order.")
    buffers: dict[Name, BufferSpec] = Field(default_factory=dict, description="Tensors that are not trained.")
    forward: str | None = Field(None, description="The computation; without it the layers run in order.")

    @model_validator(mode="after")
    def _names_are_distinct(self) -> BlockSpec:
        seen: dict[str, str] = {}
        for section in ("args", "inputs", "layers", "buffers"):
            for name in getattr(self, section):
                if name in seen:
                    what = f"{name!r} stands in both {seen[name]} and {section}\nrename one of them"
                    raise _WrongPart(f"{section}.{name}", what)
                seen[name] = section
        indexed = any(layer.repeat is not None for layer in self.layers.values())
        loop_names = {"layer", "parameter", *(["i"] if indexed else [])}
        for name in sorted(loop_names & {*self.args, *self.inputs}):
            what = f"{name!r} names the index or the item of a repeat\nrename the {seen[name].rstrip('s')}"
            raise _WrongPart(f"{seen[name]}.{name}", what)
        optional = [name for name, spec in self.inputs.items() if spec.is_optional]
        if list(self.inputs)[len(self.inputs) - len(optional) :] != optional:
            what = f"input {optional[0]!r} has a default and stands before one that has none\nput it last"
            raise _WrongPart(f"inputs.{optional[0]}", what)
        if not self.layers and (self.forward is None or isinstance(self, ModelSpec)):
            raise ValueError("no layers\ngive layers: {fc: {kind: Linear, ...}}")
        return self


class ModelSpec(BlockSpec):
    """A whole model file."""

    blocks: dict[Annotated[str, AfterValidator(_identifier)], BlockSpec] = Field(
        default_factory=dict, description="Reusable pieces, by the name that `kind` gives."
    )
    init: dict[RuleName, InitRule] = Field(default_factory=dict, description="Named init rules; later ones win.")
    freeze: dict[RuleName, FreezeRule] = Field(default_factory=dict, description="Named freeze rules.")
    tie: dict[str, Tie] = Field(default_factory=dict, description="Tied parameters, target: source.")


_REMEDIES = {  # by the first word of pydantic's own error types
    "bool": "write true or false",
    "dict": "give names with values: {NAME: ...}",
    "list": "give a list: [..., ...]",
    "tuple": "give a list: [..., ...]",
    "string": "give text; in quotes where YAML reads a number, a date or a bool",
    "int": "give a whole number",
    "float": "give a number",
    "literal": "use one of these",
    "invalid": "put the name in quotes; inside {...} YAML ends a value at a comma or bracket",
    "union": "see `python -m builder schema` for what may stand here",
}


def problems_of(error: ValidationError, model: type[BaseModel] | None = None) -> Iterator[Problem]:
    """A pydantic error as problems with dotted addresses; `model` is the class, where it is not a model file's."""
    for item in error.errors(include_url=False):
        path = [
            str(part)
            for part in item["loc"]
            if not str(part).startswith(("function-", "PolicySpec", "dict[", "constrained", "[key]"))
        ]
        cause = item.get("ctx", {}).get("error")
        path += cause.address.split(".") if isinstance(cause, _WrongPart) else []
        what, _, hint = item["msg"].removeprefix("Value error, ").partition("\n")
        if item["type"] == "extra_forbidden":
            known = did_you_mean(path[-1], _known_keys(path[:-1], model))
            what, hint = f"unknown key {path[-1]!r}", known if path[-1].isidentifier() else _REMEDIES["invalid"]
        elif item["type"] == "missing":
            what, hint = f"{path[-1]!r} is missing", f"give {path[-1]}: ..."
        elif not item["type"].startswith("value_error"):
            what = f"{what[0].lower()}{what[1:]}, got {item['input']!r}"
            hint = _REMEDIES.get(item["type"].partition("_")[0], "")
            if item["type"].startswith("model_"):
                hint = f"write {{{', '.join(f'{key}: ...' for key in _known_keys(path, model)[:3])}}}"
        yield Problem(".".join(path) or "model", what, hint)


def _known_keys(path: list[str], model: type[BaseModel] | None) -> list[str]:
    section = path[-2] if len(path) >= 2 else ""
    owners: dict[str, type[BaseModel]] = {
        "inputs": InputSpec,
        "buffers": BufferSpec,
        "freeze": FreezeRule,
        "blocks": BlockSpec,
        "tie": TieSpec,
    }
    owner = owners.get(section, model or ModelSpec)
    return [field.alias or name for name, field in owner.model_fields.items()]


def read_spec(data: Mapping[str, Any]) -> tuple[ModelSpec | None, list[Problem]]:
    """The spec that plain data stand for, or what is wrong with them."""
    try:
        return ModelSpec.model_validate(dict(data)), []
    except ValidationError as err:
        return None, list(problems_of(err))
