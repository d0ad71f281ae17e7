"""What layers give out, measured while a step that is logged runs forward.

Hooks exist only from the start of a logged step's first batch to the end of its last. A hook looks at the output and
keeps a few numbers on the device, not the output. A layer that is called several times is measured over all calls, but
not again where the backward pass runs it (`torch.utils.checkpoint`).

A unit is dead if each of its values in the whole step is exactly 0. There are as many as the nearest layer with weights
before it gives out: channels (axis 1) after a convolution or its norms, else features (the last axis). `dead` is null
where fewer than 16 values of a unit, or only one sample, were seen: that they are 0 says little.

`saturated` is null for a layer that gives out what the model itself returns: that is meant to be near its bounds. A
hardtanh is saturated at its bounds; one with 0 as the lower bound is ReLU-like.

Activations that a forward calls as functions (`relu(x)`, `x.tanh()`) are seen as well, as `layer.relu()`: for the time
of the model's forward its calls of torch go through a `TorchFunctionMode`, which passes them on unchanged.

Of an output in several parts (tuple, list, mapping) the first that can be measured is. That needs a dense tensor of
floating-point values, which is no `DTensor` and belongs to no transform of `torch.func`. Not measured are scripted
layers, which take no hooks; what computes a weight (`torch.nn.utils.parametrize`); models with a compiled part (a hook
would compile them again) or with attention in eval mode (torch leaves its fast path where it sees a hook); and
evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from builder.names import Patterns, matches
from builder.stats.measure import OUTPUT, joined, output_sums, wide_type

# Functions of torch; a layer's class has the same name but for its capitals.
RELU_LIKE = frozenset(("relu", "relu6", "rrelu", "threshold", "hardshrink", "softshrink", "hardswish"))
TANH_LIKE = frozenset(("tanh", "softsign"))
SIGMOID_LIKE = frozenset(("sigmoid", "hardsigmoid"))
HARDTANH = "hardtanh"
ACTIVATIONS = RELU_LIKE | TANH_LIKE | SIGMOID_LIKE | {HARDTANH}
BEYOND, BELOW = 0.97, 0.03  # where an output is called saturated
LEAST_VALUES, LEAST_SAMPLES = 16, 2  # of a unit that is active in one value of twenty 16 are all 0 with 44 %
UNITS = ("alive",)
_CHANNELS_FIRST = (_ConvNd, _NormBase, nn.GroupNorm)
_FEATURES_LAST = (
    nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.MultiheadAttention,
)  # fmt: skip
_FAST_IN_EVAL = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
SATURATED = ("beyond",)


Bounds = tuple[float, float] | None
"""Of a hardtanh."""


@dataclass
class Units:
    """The units of one call.

    Attributes:
        alive: Whether each was ever anything but 0, as 0 and 1.
        values: How many values of each were seen.
        samples: In how many samples, counted along the first axis.
    """

    alive: Tensor
    values: int
    samples: int

    @property
    def can_be_judged(self) -> bool:
        """Whether enough was seen for zeros to mean something."""
        return self.values >= LEAST_VALUES and self.samples >= LEAST_SAMPLES

    def __add__(self, other: Units) -> Units:
        """Of both."""
        alive = torch.maximum(self.alive, other.alive)
        return Units(alive, self.values + other.values, self.samples + other.samples)


@dataclass
class Layer:
    """What one layer gave out during a step.

    Attributes:
        kind: Its class, or the name of a function.
        sums: (1, columns `OUTPUT`) of each call.
        units: By the number of the call in its forward pass, and of units; none where the layer is not ReLU-like.
        beyond: How many values were saturated, of each call; none where nothing saturates.
        is_output: Whether the model returned what it gave out.
    """

    kind: str
    sums: list[Tensor] = field(default_factory=list)
    units: dict[tuple[int, int], Units] = field(default_factory=dict)
    beyond: list[Tensor] = field(default_factory=list)
    is_output: bool = False

    def tables(self) -> dict[str, tuple[tuple[str, ...], Tensor]]:
        """Its numbers as tables that several processes can join, with their columns."""
        found: dict[str, tuple[tuple[str, ...], Tensor]]
        found = {"sums": (OUTPUT, joined(torch.stack(self.sums), OUTPUT))}
        judged = [units.alive for units in self.units.values() if units.can_be_judged]
        if judged:
            found["alive"] = (UNITS, torch.cat(judged).unsqueeze(1))
        if self.beyond and not self.is_output:
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
        self._left_out = weight_makers(model)
        self._handles: list[RemovableHandle] = []
        self._found: dict[str, Layer] = {}
        self._calls: dict[str, int] = {}
        self._running: list[nn.Module] = []
        self._axis: tuple[int, int] | None = None
        self._bounded: list[tuple[Layer, StorageWeakRef]] = []
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
        self._bounded = []
        self._stop_functions()

    def take(self) -> dict[str, Layer]:
        """What was seen, by path, in the order in which layers and functions first ended; forgets it."""
        found, self._found, self.seconds = self._found, {}, 0.0
        return found

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        if not self._running:  # a model may call itself
            self._calls, self._bounded, self._axis = {}, [], None
            if not self.paused:
                self._functions = _Activations(self._see_function)
                self._functions.__enter__()  # type: ignore[no-untyped-call]
        self._running.append(module)

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._running.pop()
        if not self._running:
            self._stop_functions()
            returned = {_storage(part) for part in _parts(output) if _is_dense(part)}
            for layer, storage in self._bounded:
                layer.is_output |= storage in returned
            self._bounded = []

    def _stop_functions(self) -> None:
        if self._functions is not None:
            self._functions.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._functions = None

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._running.append(module)

    def _leave(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self._running.pop()
        tensor = None if module in self._left_out else _first_tensor(output)
        if tensor is None:
            return
        if tensor.ndim > 1 and isinstance(module, _CHANNELS_FIRST + _FEATURES_LAST):
            axis = 1 if isinstance(module, _CHANNELS_FIRST) else -1
            self._axis = axis, tensor.shape[axis]
        bounds = (module.min_val, module.max_val) if isinstance(module, nn.Hardtanh) else None
        self._see(path, kind_of(module), tensor, bounds)

    def _see_function(self, name: str, output: Any, bounds: Bounds) -> None:
        caller = self._running[-1]
        tensor = None if caller in self._left_out else _first_tensor(output)
        if tensor is not None and kind_of(caller).lower() not in ACTIVATIONS and not isinstance(caller, nn.Hardtanh):
            self._see(f"{self._paths[caller]}.{name}()".lstrip("."), name, tensor, bounds)

    def _see(self, path: str, kind: str, tensor: Tensor, bounds: Bounds) -> None:
        started = time.perf_counter()
        in_backward = torch._C._current_graph_task_id() != -1  # as torch.utils.checkpoint asks it
        if in_backward or self.paused or not matches(path, self._patterns):
            return
        like = "relu6" if bounds is not None and bounds[0] == 0 else kind.lower()
        with torch._C.DisableTorchFunction(), torch.no_grad(), _full_precision(tensor.device.type):
            layer = self._found.setdefault(path, Layer(kind))
            call = self._calls[path] = self._calls.get(path, -1) + 1
            values = tensor.detach()
            layer.sums.append(output_sums(values))
            if like in RELU_LIKE:
                units = _units(values, self._axis)
                key = call, len(units.alive)  # of which a batch of another length has others
                layer.units[key] = layer.units[key] + units if key in layer.units else units
            if like in ACTIVATIONS - RELU_LIKE:
                layer.beyond.append(_beyond(values, like, bounds).view(1, 1))
                self._bounded.append((layer, _storage(values)))
        self.seconds += time.perf_counter() - started


def weight_makers(model: nn.Module) -> set[nn.Module]:
    """The modules that `torch.nn.utils.parametrize` has put into layers; they give out weights."""
    lists = [module for module in model.modules() if isinstance(module, ParametrizationList)]
    return {module for each in lists for module in each.modules()}


class _Activations(TorchFunctionMode):
    """Shows the outputs of activations that are called as functions."""

    def __init__(self, see: Callable[[str, Any, Bounds], None]) -> None:
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
            self._see(name, output, _bounds(*args, **(kwargs or {})) if name == HARDTANH else None)
        return output


def _full_precision(device: str) -> AbstractContextManager[Any]:
    """Within autocast, measures would be taken in the low precision as well."""
    is_lower = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if is_lower else nullcontext()


def kind_of(module: nn.Module) -> str:
    """The class's name; of one that `fully_shard` or `torch.nn.utils.parametrize` has wrapped, the wrapped one's."""
    name = type(module).__name__
    if is_parametrized(module):
        return name.removeprefix("Parametrized")
    return name.removeprefix("FSDP") if name.startswith("FSDP") and len(type(module).__mro__) > 2 else name


def _bounds(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Bounds:
    """Of a call of `torch.nn.functional.hardtanh`."""
    return min_val, max_val


def _first_tensor(output: Any) -> Tensor | None:
    """The first part of an output that can be measured."""
    usable = (part for part in _parts(output) if _is_dense(part) and part.is_floating_point() and part.numel())
    return next(usable, None)


def _parts(output: Any) -> Iterable[Any]:
    if isinstance(output, Mapping):
        return output.values()
    return output if isinstance(output, tuple | list) else (output,)


def _is_dense(part: Any) -> bool:
    """Whether it is a tensor whose memory can be read."""
    plain = type(part) in (Tensor, nn.Parameter) and part.layout == torch.strided
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(part)


def _storage(tensor: Tensor) -> StorageWeakRef:
    """Equal for tensors that share memory; the memory may go."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _units(values: Tensor, expected: tuple[int, int] | None) -> Units:
    """The units of an output.

    Args:
        values: The output.
        expected: The axis of the units of the layer with weights before it, and how many it has; None: not known, and
            then a picture's are its channels.
    """
    axis, count = expected or (1 if values.ndim >= 4 else -1, 0)
    if values.ndim < 3:
        axis = -1
    elif values.shape[axis] != count and values.shape[other := -1 if axis == 1 else 1] == count:
        axis = other  # the axes were changed in between
    rows = values.movedim(axis, -1).flatten(0, -2) if values.ndim > 1 else values.reshape(1, -1)
    alive = rows.ne(0).any(0).to(wide_type(values))
    return Units(alive, len(rows), len(values) if values.ndim > 1 else 1)


def _beyond(values: Tensor, like: str, bounds: Bounds) -> Tensor:
    if bounds is not None:
        low, high = bounds
        outside = (values <= low) | (values >= high)
    else:
        outside = values.abs() > BEYOND if like in TANH_LIKE else (values > BEYOND) | (values < BELOW)
    return outside.sum().to(wide_type(values))
