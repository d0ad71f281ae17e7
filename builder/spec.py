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
        raise ValueError(f"name {name!r} is a {type(name).__name__}; names are text")
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise ValueError(
            f"name {name!r} cannot be an attribute; use letters, digits and underscores, beginning with a letter"
        )
    if name in RESERVED:
        raise ValueError(f"name {name!r} has a meaning in the generated source; choose another")
    if name in MODULE_ATTRIBUTES:
        raise ValueError(f"name {name!r} would hide torch.nn.Module.{name}; choose another")
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
        raise ValueError(f"{value!r} is a {type(value).__name__}; a size is a number, an `=` expression or a name")
    return value


StrictIntOrText = Annotated[int | str, BeforeValidator(_number_or_text)]


def _count(value: object) -> object:
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, str) and value.startswith("="))):
        raise ValueError(f"{value!r} is a {type(value).__name__}; a count is a whole number or an `=` expression")
    return value


class InputSpec(_Data):
    """One tensor that `forward` takes."""

    shape: tuple[StrictIntOrText, ...] | None = Field(
        None, description="Sizes: numbers, `=` expressions, or names of symbolic dimensions such as `batch`."
    )
    dtype: DType = Field("float32", description="Element type.")
    range: tuple[Any, Any] | None = Field(None, description="Least value and the bound it stays below, as for indices.")


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
        raise ValueError(f"{value!r} is a {type(value).__name__}; give a policy's name, or {{policy: NAME, ...}}")

    @property
    def arguments(self) -> dict[str, Any]:
        """The policy's own arguments."""
        return dict(self.__pydantic_extra__ or {})


class InitRule(Selector):
    """A named init rule: a selector, a policy and the policy's arguments."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    policy: str = Field(description="Name of the policy, as in torch.nn.init without the underscore.")

    @property
    def arguments(self) -> dict[str, Any]:
        """The policy's own arguments."""
        return dict(self.__pydantic_extra__ or {})


class LayerSpec(BaseModel):
    """One layer: its kind, how often it stands, and the arguments of its class."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    kind: str = Field(description="Parameter, a public class of torch.nn, or a block of this file.")
    repeat: Annotated[StrictInt | Expression, BeforeValidator(_count)] | None = Field(
        None, description="Makes a list of so many; `i` is the index within it."
    )
    init: PolicySpec | dict[str, PolicySpec] | None = Field(
        None, description="Policy of a raw Parameter, or a mapping from the layer's own parameters to policies."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_init(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            raise ValueError(f"{value!r} is not a layer; a layer is {{kind: ..., ...}}")
        init = value.get("init")
        if isinstance(init, str) or (isinstance(init, Mapping) and "policy" in init):
            return {**value, "init": PolicySpec.model_validate(init)}
        return dict(value)

    @model_validator(mode="after")
    def _check(self) -> LayerSpec:
        for key in self.arguments:
            if not key.isidentifier() or keyword.iskeyword(key) or key.startswith("_"):
                raise ValueError(f"argument {key!r} is not a name\nan argument is written name: value")
        if self.kind == "Parameter":
            unknown = sorted(set(self.arguments) - {"shape", "axes", "dtype"})
            if unknown:
                hint = did_you_mean(unknown[0], ["shape", "axes", "dtype", "init", "repeat"])
                raise ValueError(f"unknown key {unknown[0]!r} of a Parameter\n{hint}")
            if not isinstance(self.arguments.get("shape"), list | tuple | str):
                raise ValueError("a Parameter needs a shape\ngive shape: [=rows, =columns]; [] is a single number")
            if isinstance(self.init, dict):
                raise ValueError(
                    "a Parameter takes one policy\ngive init: normal, or init: {policy: normal, std: 0.02}"
                )
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the layer's class, as they stand in the file."""
        return dict(self.__pydantic_extra__ or {})


class BufferSpec(_Data):
    """A tensor that is not trained."""

    value: Any = Field(description="A number, a list, or an `=` expression of tensors.")
    persistent: StrictBool = Field(True, description="Whether it is saved in the state_dict.")
    dtype: DType | None = Field(None, description="Element type; by default that of the value.")


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
Inputs = Annotated[dict[Name, InputSpec], BeforeValidator(_named_inputs)]


class BlockSpec(_Data):
    """A reusable piece: a model with arguments."""

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
                    raise ValueError(f"{name!r} stands in both {seen[name]} and {section}\nrename one of them")
                seen[name] = section
        indexed = any(layer.repeat is not None for layer in self.layers.values())
        loop_names = {"layer", "parameter", *(["i"] if indexed else [])}
        for name in sorted(loop_names & {*self.args, *self.inputs}):
            raise ValueError(f"{name!r} names the index or the item of a repeat\nrename the {seen[name].rstrip('s')}")
        if not self.layers:
            raise ValueError("no layers\ngive layers: {fc: {kind: Linear, ...}}")
        return self


class ModelSpec(BlockSpec):
    """A whole model file."""

    blocks: dict[Annotated[str, AfterValidator(_identifier)], BlockSpec] = Field(
        default_factory=dict, description="Reusable pieces, by the name that `kind` gives."
    )
    init: dict[RuleName, InitRule] = Field(default_factory=dict, description="Named init rules; later ones win.")
    freeze: dict[RuleName, Selector] = Field(default_factory=dict, description="Named freeze rules.")
    tie: dict[str, str] = Field(default_factory=dict, description="Tied parameters, target: source.")


def problems_of(error: ValidationError, model: type[BaseModel] | None = None) -> Iterator[Problem]:
    """A pydantic error as problems with dotted addresses; `model` is the class, where it is not a model file's."""
    for item in error.errors(include_url=False):
        path = [
            str(part)
            for part in item["loc"]
            if not str(part).startswith(("function-", "PolicySpec", "dict[", "constrained", "[key]"))
        ]
        what, _, hint = item["msg"].removeprefix("Value error, ").partition("\n")
        if item["type"] == "extra_forbidden":
            what, hint = f"unknown key {path[-1]!r}", did_you_mean(path[-1], _known_keys(path[:-1], model))
        elif item["type"] == "missing":
            what, hint = f"{path[-1]!r} is missing", f"give {path[-1]}: ..."
        elif not item["type"].startswith("value_error"):
            what = f"{what[0].lower()}{what[1:]}, got {item['input']!r}"
        yield Problem(".".join(path) or "model", what, hint)


def _known_keys(path: list[str], model: type[BaseModel] | None) -> list[str]:
    section = path[-2] if len(path) >= 2 else ""
    owners: dict[str, type[BaseModel]] = {
        "inputs": InputSpec,
        "buffers": BufferSpec,
        "freeze": Selector,
        "blocks": BlockSpec,
    }
    owner = owners.get(section, model or ModelSpec)
    return [field.alias or name for name, field in owner.model_fields.items()]


def read_spec(data: Mapping[str, Any]) -> tuple[ModelSpec | None, list[Problem]]:
    """The spec that plain data stand for, or what is wrong with them."""
    try:
        return ModelSpec.model_validate(dict(data)), []
    except ValidationError as err:
        return None, list(problems_of(err))
