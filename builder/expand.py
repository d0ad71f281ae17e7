"""A spec → every layer instance, with the values of its arguments.

Blocks are entered and repeats unrolled, so that every `=` expression is computed once with the arguments that it
will have, before torch is imported. What an expression refuses is reported at its own address.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from builder.errors import Problem, did_you_mean
from builder.evaluate import evaluate
from builder.language import LanguageError, is_expression
from builder.spec import REQUIRED, BlockSpec, LayerSpec, ModelSpec

MAX_INSTANCES = 50_000
MAX_REPEAT = 10_000


@dataclass(frozen=True)
class Instance:
    """One layer as it will stand in the module.

    Attributes:
        path: Dotted module path (`h.0.c_fc`).
        address: Address in the model file (`blocks.MLP.layers.c_fc`).
        layer: What the file says of it.
        values: Its class's arguments, computed.
        scope: The argument values that its expressions see.
    """

    path: str
    address: str
    layer: LayerSpec
    values: dict[str, Any]
    scope: dict[str, Any]


class Expansion:
    """Collects instances and problems; each address is reported once, however often it repeats."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.instances: list[Instance] = []
        self.problems: list[Problem] = []
        self.args: dict[str, Any] = {}
        self.size = 0

    def run(self) -> Expansion:
        """Fills `instances`, `args` and `problems`."""
        self.args = self._arguments(self.spec, {}, "args")
        if not self.problems:
            self._enter(self.spec, self.args, "", "", ())
        self.problems = list(dict.fromkeys(self.problems))
        return self

    def _arguments(self, block: BlockSpec, given: Mapping[str, Any], address: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, default in block.args.items():
            if name not in given and default == REQUIRED:
                self.problems.append(
                    Problem(f"{address}.{name}", f"argument {name!r} has no value", f"give {name}: ...")
                )
            values[name] = given[name] if name in given else self.compute(default, values, f"{address}.{name}")
        return values

    def compute(self, value: Any, scope: Mapping[str, Any], address: str) -> Any:
        """The value of a YAML value: an expression is evaluated, lists and mappings item by item."""
        if isinstance(value, list | tuple):
            return [self.compute(item, scope, f"{address}.{i}") for i, item in enumerate(value)]
        if isinstance(value, Mapping):
            return {key: self.compute(item, scope, f"{address}.{key}") for key, item in value.items()}
        if not is_expression(value):
            return value
        try:
            return evaluate(value, scope)
        except LanguageError as err:
            self.problems.append(Problem(address, err.what, err.hint))
            return None

    def _enter(self, block: BlockSpec, scope: dict[str, Any], path: str, section: str, inside: tuple[str, ...]) -> None:
        self._enter_layers(block.layers, scope, path, f"{section}layers", inside)

    def _enter_layers(
        self, layers: Mapping[str, LayerSpec], scope: dict[str, Any], path: str, section: str, inside: tuple[str, ...]
    ) -> None:
        for name, layer in layers.items():
            address = f"{section}.{name}"
            for index, inner in self._indices(layer, scope, address):
                here = f"{path}{name}" if index is None else f"{path}{name}.{index}"
                if self._is_made(layer, inner, address):
                    self._place(layer, inner, here, address, inside)
                if self.size > MAX_INSTANCES:
                    return

    def _is_made(self, layer: LayerSpec, scope: Mapping[str, Any], address: str) -> bool:
        if layer.when is None:
            return True
        before = len(self.problems)
        holds = self.compute(layer.when, scope, f"{address}.when")
        if len(self.problems) == before and not isinstance(holds, bool):
            self.problems.append(Problem(f"{address}.when", f"got {holds!r}", "a comparison, or true or false"))
        return holds is True

    def _indices(
        self, layer: LayerSpec, scope: dict[str, Any], address: str
    ) -> Iterator[tuple[int | None, dict[str, Any]]]:
        if layer.repeat is None:
            yield None, scope
            return
        before = len(self.problems)
        count = self.compute(layer.repeat, scope, f"{address}.repeat")
        if len(self.problems) > before:
            return
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_REPEAT:
            self.problems.append(
                Problem(f"{address}.repeat", f"got {count!r}", f"a whole number from 0 to {MAX_REPEAT}")
            )
            return
        for index in range(count):
            yield index, {**scope, "i": index}

    def _place(self, layer: LayerSpec, scope: dict[str, Any], path: str, address: str, inside: tuple[str, ...]) -> None:
        self.size += 1
        if self.size > MAX_INSTANCES:
            self.problems.append(Problem(address, f"more than {MAX_INSTANCES} layers", "repeat less"))
            return
        before = len(self.problems)
        values = {key: self.compute(value, scope, f"{address}.{key}") for key, value in layer.arguments.items()}
        if len(self.problems) > before:
            return
        self.instances.append(Instance(path, address, layer, values, scope))
        if layer.layers is not None:
            self._enter_layers(layer.children, scope, f"{path}.", f"{address}.layers", inside)
            return
        block = self.spec.blocks.get(layer.kind)
        if block is None:
            return
        if layer.kind in inside:
            self.problems.append(
                Problem(address, f"block {layer.kind!r} contains itself", "blocks cannot recurse; use repeat")
            )
            return
        unknown = [key for key in values if key not in block.args]
        self.problems += [
            Problem(f"{address}.{key}", f"block {layer.kind!r} has no argument {key!r}", did_you_mean(key, block.args))
            for key in unknown
        ]
        missing = [key for key, value in block.args.items() if value == REQUIRED and key not in values]
        self.problems += [
            Problem(address, f"block {layer.kind!r} needs {key!r}", f"give {key}: ...") for key in missing
        ]
        if not unknown and not missing:
            inner = self._arguments(block, values, f"blocks.{layer.kind}.args")
            self._enter(block, inner, f"{path}.", f"blocks.{layer.kind}.", (*inside, layer.kind))


def expand(spec: ModelSpec) -> Expansion:
    """All layer instances of a spec, the values of its args, and the problems met."""
    return Expansion(spec).run()
