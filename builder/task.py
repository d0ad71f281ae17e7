"""What a model learns, as data: batch, outputs, loss and metrics, in the model file's own language.

    batch: [x, y]                                   # names for the parts of a batch
    outputs: {logits: model(x)}                     # computed once, in order
    loss: cross_entropy(logits, y)
    metrics: {accuracy: {_target_: torchmetrics.Accuracy, task: multiclass, num_classes: 10, of: [logits, y]}}

The texts become one Python function each, generated and run as a model's forward is. Only classes of torchmetrics can
be metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchmetrics
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from builder.errors import Problem, did_you_mean, raise_all
from builder.language import LanguageError, parse_expression
from builder.rendering import Renderer, Scope
from builder.spec import Name, problems_of

Batch = Sequence[torch.Tensor]


class TaskSpec(BaseModel):
    """What a task's config may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: tuple[Name, ...] = Field(min_length=1, description="Names for the parts of a batch, in order.")
    outputs: dict[Name, str] = Field(
        default_factory=dict, description="Named values, computed in order; `model` is the model."
    )
    loss: str = Field(description="The scalar to minimise.")
    metrics: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="torchmetrics classes; `of` names what they are given."
    )


@dataclass(frozen=True)
class Task:
    """A task ready to run.

    Attributes:
        spec: What the config says.
        source: The generated functions, as text.
        loss: `(model, batch)` → scalar loss.
        evaluate: `(model, batch)` → scalar loss, and what each metric is given.
        make_metrics: Makes the metrics, anew at each call.
    """

    spec: TaskSpec
    source: str
    loss: Callable[[nn.Module, Batch], torch.Tensor]
    evaluate: Callable[[nn.Module, Batch], tuple[torch.Tensor, dict[str, tuple[torch.Tensor, ...]]]]
    make_metrics: Callable[[], dict[str, torchmetrics.Metric]]


def read_task(data: Mapping[str, Any]) -> Task:
    """A task from its config.

    Raises:
        BuilderError: Unknown keys or names, text outside the language, or a metric that does not exist.
    """
    try:
        spec = TaskSpec.model_validate(dict(data))
    except ValidationError as err:
        raise_all("task", [Problem(f"task.{p.address}", p.what, p.hint) for p in problems_of(err, TaskSpec)])
        raise
    problems: list[Problem] = []
    source = _render(spec, problems)
    metrics = {name: _metric(name, given, problems) for name, given in spec.metrics.items()}
    raise_all("task", problems)
    namespace: dict[str, Any] = {}
    exec(compile(source, "<generated task>", "exec"), namespace)
    return Task(
        spec, source, namespace["loss"], namespace["evaluate"], lambda: {name: make() for name, make in metrics.items()}
    )


def _render(spec: TaskSpec, problems: list[Problem]) -> str:
    bound = [*spec.batch, "model"]
    body = [f"    {', '.join(spec.batch)}{',' if len(spec.batch) == 1 else ''} = batch"]

    def text(expression: str, address: str) -> str:
        try:
            scope = Scope(tensors={name: name for name in bound})
            return Renderer(scope).expression(parse_expression(expression))
        except LanguageError as err:
            problems.append(Problem(f"task.{address}", err.what, err.hint))
            return "..."

    for name, expression in spec.outputs.items():
        body.append(f"    {name} = {text(expression, f'outputs.{name}')}")
        bound.append(name)
    loss = text(spec.loss, "loss")
    pairs = []
    for name, metric in spec.metrics.items():
        given = [text(str(item), f"metrics.{name}.of") for item in _metric_inputs(spec, name, metric, problems)]
        pairs.append(f'"{name}": ({", ".join(given)},)')
    lines = ["import math", "", "import torch", "import torch.nn.functional as F", "", ""]
    lines += ["def loss(model, batch):", *body, f"    return {loss}", "", ""]
    lines += ["def evaluate(model, batch):", *body, f"    return {loss}, {{{', '.join(pairs)}}}"]
    return "\n".join(lines) + "\n"


def _metric_inputs(spec: TaskSpec, name: str, metric: Mapping[str, Any], problems: list[Problem]) -> list[Any]:
    given = metric.get("of")
    if isinstance(given, list | tuple) and given:
        return list(given)
    if given is None and spec.outputs and len(spec.batch) > 1:
        return [next(iter(spec.outputs)), spec.batch[-1]]
    problems.append(
        Problem(f"task.metrics.{name}.of", f"got {given!r}", "name what the metric is given: of: [logits, y]")
    )
    return []


def _metric(name: str, given: Mapping[str, Any], problems: list[Problem]) -> Callable[[], torchmetrics.Metric]:
    arguments = {key: value for key, value in given.items() if key not in ("_target_", "of")}
    target = str(given.get("_target_", ""))
    module, _, cls_name = target.rpartition(".")
    cls = getattr(torchmetrics, cls_name, None)
    address = f"task.metrics.{name}"
    if module.partition(".")[0] != "torchmetrics" or not (
        isinstance(cls, type) and issubclass(cls, torchmetrics.Metric)
    ):
        hint = did_you_mean(cls_name, torchmetrics.__all__, most=6) + "\ngive _target_: torchmetrics.NAME"
        problems.append(Problem(f"{address}._target_", f"{target!r} is not a metric of torchmetrics", hint))
        return torchmetrics.MeanMetric  # type: ignore[no-any-return]
    metric_class: Callable[..., torchmetrics.Metric] = cls
    try:
        metric_class(**arguments)
    except (TypeError, ValueError, ModuleNotFoundError) as err:
        problems.append(Problem(address, f"{cls_name}: {str(err).splitlines()[0]}", "mend its arguments"))

    def make() -> torchmetrics.Metric:
        return metric_class(**arguments)

    return make
