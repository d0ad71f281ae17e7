"""JSON Schema of the model file, for editors: what may be written where, with every field's description.

It is made from the spec itself. Where a number, a bool or a list belongs, an interpolation (`${...}`) is accepted as
well; short forms (a policy's name, a list of inputs) are accepted beside the long ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.spec import ModelSpec

_INTERPOLATION = {"type": "string", "pattern": r"^\$\{"}
_TEXT_LIST = {"type": "array", "items": {"type": "string"}}
# Short forms, by section; the spec reads them before its own types do.
_SHORT: dict[tuple[str, str], list[dict[str, Any]]] = {
    (owner, key): [_TEXT_LIST] for owner in ("BlockSpec", "ModelSpec") for key in ("args", "inputs")
} | {("LayerSpec", "init"): [{"type": "string"}]}
_VALUE_SHORT: dict[tuple[str, str], list[dict[str, Any]]] = {  # of the values of a mapping
    (owner, "inputs"): [{"type": "null"}] for owner in ("BlockSpec", "ModelSpec")
} | {("ModelSpec", "tie"): [{"type": "string"}], ("LayerSpec", "init"): [{"type": "string"}]}


def schema() -> dict[str, Any]:
    """The JSON Schema of a model file (draft 2020-12)."""
    made = ModelSpec.model_json_schema(by_alias=True)
    definitions = made.pop("$defs")
    named = {**definitions, "ModelSpec": made}
    for owner, definition in named.items():
        for key, field in definition.get("properties", {}).items():
            definition["properties"][key] = _field(owner, key, field)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "builder model file",
        **{key: value for key, value in made.items() if key != "title"},
        "$defs": definitions,
    }


def _field(owner: str, key: str, field: Mapping[str, Any]) -> dict[str, Any]:
    about = {name: value for name, value in field.items() if name in ("description", "default")}
    form = {name: value for name, value in field.items() if name not in ("description", "default", "title")}
    for entry in form.get("anyOf", [form]):
        if (owner, key) in _VALUE_SHORT and "additionalProperties" in entry:
            entry["additionalProperties"] = {"anyOf": [entry["additionalProperties"], *_VALUE_SHORT[owner, key]]}
    forms = [*form.get("anyOf", [form]), *_SHORT.get((owner, key), [])]
    if not form or any(entry.get("type") == "string" and "pattern" not in entry for entry in forms):
        return {**about, **({"anyOf": forms} if form else {})}
    return {**about, "anyOf": [*forms, _INTERPOLATION]}
