"""What layers give out, measured while a step that is logged runs forward.

Hooks exist only from the start of a logged step's first batch to the end of its last. A hook looks at the output and
keeps a few numbers on the device, not the output. A layer that is called several times is measured over all calls; a
unit is dead if each of its values in the whole step is exactly 0.

Activations that a forward calls as functions (`relu(x)`, `x.tanh()`) are seen as well, as `layer.relu()`: for the time
of the model's forward its calls of torch go through a `TorchFunctionMode`, which passes them on unchanged.

Not measured: outputs whose first part is no dense tensor of floating-point values, or is a `DTensor`, or belongs to a
transform of `torch.func`; scripted layers, which take no hooks; models with a compiled part (a hook would compile them
again) or with attention in eval mode (torch leaves its fast path where it sees a hook); and evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from builder.initialize.shards import is_shard
from builder.names import Patterns, matches
from builder.stats.measure import OUTPUT, joined, output_sums, wide_type

# Functions of torch; a layer's class has the same name but for its capitals.
RELU_LIKE = frozenset(("relu", "relu6", "rrelu", "threshold", "hardshrink", "softshrink", "hardswish"))
TANH_LIKE = frozenset(("tanh", "softsign"))
SIGMOID_LIKE = frozenset(("sigmoid", "hardsigmoid"))
ACTIVATIONS = RELU_LIKE | TANH_LIKE | SIGMOID_LIKE
BEYOND, BELOW = 0.97, 0.03  # where an output is called saturated
UNITS = ("alive",)
_FAST_IN_EVAL = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
SATURATED = ("beyond",)


@dataclass
class Layer:
    """What one layer gave out during a step.

    Attributes:
        kind: Its class, or the name of a function.
        sums: (1, columns `OUTPUT`) of each call.
        alive: By the number of the call in its forward pass, and of units: whether each was ever anything but 0.
        beyond: How many values were saturated, of each call; None where nothing saturates.
    """

    kind: str
    sums: list[Tensor] = field(default_factory=list)
    alive: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    beyond: list[Tensor] = field(default_factory=list)

    def tables(self) -> dict[str, tuple[tuple[str, ...], Tensor]]:
        """Its numbers as tables that several processes can join, with their columns."""
        found: dict[str, tuple[tuple[str, ...], Tensor]]
        found = {"sums": (OUTPUT, joined(torch.stack(self.sums), OUTPUT))}
        if self.alive:
            found["alive"] = (UNITS, torch.cat(list(self.alive.values())).unsqueeze(1))
        if self.beyond:
            found["beyond"] = (SATURATED, torch.stack(self.beyond).sum(0))
        return found


class OutputWatch:
    """Hooks on a model's layers, while they are attached.

    Attributes:
        seconds: What the hooks have taken on the host since `take` was called.

    Args:
        model: The model; its own output is its last layer's, and is not measured again.
        patterns: Globs over dotted module paths.
    """

    def __init__(self, model: nn.Module, patterns: Patterns) -> None:
        self._model, self._patterns = model, patterns
        self._paths = {module: path for path, module in model.named_modules()}
        self._handles: list[RemovableHandle] = []
        self._found: dict[str, Layer] = {}
        self._calls: dict[str, int] = {}
        self._running: list[nn.Module] = []
        self._functions: _Activations | None = None
        self.paused = False
        self.seconds = 0.0

    @property
    def is_attached(self) -> bool:
        """Whether there are hooks."""
        return bool(self._handles)

    def attach(self) -> None:
        """Adds the hooks, where they change nothing that the model does."""
        if any(isinstance(module, _FAST_IN_EVAL) and not module.training for module in self._paths):
            return
        for module, path in self._paths.items():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            begin, end = (
                (self._begin, self._end) if module is self._model else (self._enter, partial(self._leave, path))
            )
            self._handles.append(module.register_forward_pre_hook(begin))
            self._handles.append(module.register_forward_hook(end, always_call=True))

    def detach(self) -> None:
        """Removes the hooks, and what an interrupted forward has left."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._running.clear()
        self._stop_functions()

    def take(self) -> dict[str, Layer]:
        """What was seen, by path, in the order in which layers and functions first ended; forgets it."""
        found, self._found, self.seconds = self._found, {}, 0.0
        return found

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        if not self._running:  # a model may call itself
            self._calls = {}
            if not self.paused:
                self._functions = _Activations(self._see_function)
                self._functions.__enter__()  # type: ignore[no-untyped-call]
        self._running.append(module)

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._running.pop()
        if not self._running:
            self._stop_functions()

    def _stop_functions(self) -> None:
        if self._functions is not None:
            self._functions.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._functions = None

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._running.append(module)

    def _leave(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self._see(path, _kind(module), output)
        self._running.pop()

    def _see_function(self, name: str, output: Any) -> None:
        caller = self._running[-1]
        if _kind(caller).lower() not in ACTIVATIONS:
            self._see(f"{self._paths[caller]}.{name}()".lstrip("."), name, output)

    def _see(self, path: str, kind: str, output: Any) -> None:
        started = time.perf_counter()
        tensor = _first_tensor(output)
        if tensor is None or self.paused or not matches(path, self._patterns):
            return
        with torch._C.DisableTorchFunction(), torch.no_grad(), _full_precision(tensor.device.type):
            layer = self._found.setdefault(path, Layer(kind))
            call = self._calls[path] = self._calls.get(path, -1) + 1
            values = tensor.detach()
            layer.sums.append(output_sums(values))
            if kind.lower() in RELU_LIKE:
                alive = _alive(values)
                units = call, len(alive)  # of which a batch of another length has others
                layer.alive[units] = torch.maximum(alive, layer.alive[units]) if units in layer.alive else alive
            if kind.lower() in TANH_LIKE | SIGMOID_LIKE:
                layer.beyond.append(_beyond(values, kind.lower()).view(1, 1))
        self.seconds += time.perf_counter() - started


class _Activations(TorchFunctionMode):
    """Shows the outputs of activations that are called as functions."""

    def __init__(self, see: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function."""
        output = func(*args, **(kwargs or {}))
        if torch.compiler.is_compiling():
            return output
        name = getattr(func, "__name__", "").strip("_")  # relu_ is relu in place, _threshold is threshold
        if name in ACTIVATIONS:
            self._see(name, output)
        return output


def _full_precision(device: str) -> AbstractContextManager[Any]:
    """Within autocast, measures would be taken in the low precision as well."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _kind(module: nn.Module) -> str:
    """The class's name; of one that `fully_shard` has wrapped, the wrapped one's."""
    name = type(module).__name__
    return name.removeprefix("FSDP") if name.startswith("FSDP") and len(type(module).__mro__) > 2 else name


def _first_tensor(output: Any) -> Tensor | None:
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor) or is_shard(first) or first.layout != torch.strided:
        return None
    transformed = torch._C._functorch.is_functorch_wrapped_tensor(first)
    return first if not transformed and first.is_floating_point() and first.numel() else None


def _alive(values: Tensor) -> Tensor:
    """Whether each unit, the last axis or a picture's channels, is ever anything but 0, as 0 and 1."""
    units = values.movedim(1, -1) if values.ndim >= 4 else values
    return units.reshape(-1, units.shape[-1] if units.ndim else 1).ne(0).any(0).to(wide_type(values))


def _beyond(values: Tensor, kind: str) -> Tensor:
    outside = values.abs() > BEYOND if kind in TANH_LIKE else (values > BEYOND) | (values < BELOW)
    return outside.sum().to(wide_type(values))
