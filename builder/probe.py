"""One batch forward and backward through a model as it starts: how signals and gradients scale with depth.

`python -m builder probe MODEL.yaml` makes a batch of the declared shapes and sends a gradient of ones-sized noise back
from the outputs; with the overrides of a run it takes the run's first batch and its loss. Nothing is trained, written
or kept; the caller's random state is left as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import polars
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from rich import box
from rich.console import Group
from rich.table import Table
from torch import Tensor, nn

from builder.build import Proof, materialise
from builder.errors import BuilderError, Problem
from builder.explain import parameter_theory
from builder.first_batch import check_first_batch
from builder.initialize.lsuv import needs_batch, rescale
from builder.lit_module import RunPlan, assemble, scale_to_batch
from builder.run import check_settings, check_statistics, instantiated
from builder.shapes import made_batch
from builder.stats.guards import in_json
from builder.stats.outputs import LEAST_SAMPLES, LEAST_VALUES, RELU_LIKE, OutputWatch
from builder.stats.record import Recorder
from builder.stats.store import OUTPUT_SCHEMA, SCHEMA
from builder.stats.verdicts import GRADIENT, LEAST_LAYERS, Depth, Verdict, depths_judged, listed, verdicts
from builder.table import rows

SIZES = (32, 16, 16, 16, 16, 16, 16, 16, 16, 16)  # of the symbolic dimensions of a made batch, in order
BAR = 16  # characters
_FULL_PRECISION = ("None", "32", "32-true")
_KEPT = ("mean", "std", "rms", "dead", "saturated", "nonfinite")


@dataclass(frozen=True)
class LayerScale:
    """What one layer gave out, and the gradient that came back to it.

    Attributes:
        layer: Dotted path.
        kind: Its class.
        mean: Of all values of the output.
        std: Of all values of the output.
        rms: Of all values of the output.
        dead: The fraction of units that are 0 for the whole batch; None where the layer is not ReLU-like, or the batch
            too small.
        saturated: The fraction of saturated values; None where the layer is neither tanh- nor sigmoid-like, or the
            model returns what it gives out.
        nonfinite: How many values are NaN or infinite.
        gradient_rms: Of the loss with respect to the output; None where none came back.
    """

    layer: str
    kind: str
    mean: float | None
    std: float | None
    rms: float | None
    dead: float | None
    saturated: float | None
    nonfinite: int | None
    gradient_rms: float | None


@dataclass(frozen=True)
class WeightScale:
    """One parameter as it was drawn.

    Attributes:
        name: Dotted name.
        shape: Its sizes.
        predicted_std: In theory; None where the policy has none.
        std: As drawn.
        gradient_rms: Of the loss; None where none reached it.
    """

    name: str
    shape: tuple[int, ...]
    predicted_std: float | None
    std: float
    gradient_rms: float | None


@dataclass(frozen=True)
class Probe:
    """What one batch showed.

    Attributes:
        batch: What went through the model, in words.
        loss: Its value.
        layers: In the order in which they ran to their end.
        weights: In the model's order.
        verdicts: What the numbers say; none where all that was judged is well.
        judged: What was judged, besides whether numbers are finite.
        unjudged: What could not be, and why.
        is_healthy: Whether nothing was found, and nothing was left unjudged because numbers are exactly 0.
    """

    batch: str
    loss: float
    layers: tuple[LayerScale, ...]
    weights: tuple[WeightScale, ...]
    verdicts: tuple[Verdict, ...]
    judged: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    is_healthy: bool = False

    def as_data(self) -> dict[str, Any]:
        """As plain data, for JSON, which knows no NaN: that becomes a text."""
        data: dict[str, Any] = in_json(asdict(self) | {"verdicts": [verdict.as_data() for verdict in self.verdicts]})
        return data


def probe_model(proof: Proof, seed: int = 0) -> Probe:
    """Sends a made batch through the model of a proof, and noise of rms 1 back from its outputs.

    Args:
        proof: Of the model.
        seed: The init seed.

    Raises:
        BuilderError: An input declares no shape, a statement of forward fails, or `lsuv` does.
    """
    module = materialise(proof, seed=seed)
    batch = made_batch(proof.loaded, proof.expansion, SIZES)
    with torch.random.fork_rng(devices=[]):
        rescale(module, proof.decisions, proof.parameters, lambda: module(**batch))

    def loss() -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        leaves = [leaf for leaf in _tensors(module(**batch)) if leaf.requires_grad]
        if not leaves:
            hint = "thaw a parameter, or probe a run: python -m builder probe OVERRIDES"
            raise BuilderError("probe", [Problem("forward", "gives nothing that has a gradient", hint)])
        noises = [torch.randn(leaf.shape, generator=generator).to(leaf.dtype) for leaf in leaves]
        return torch.stack([(leaf * noise).sum() for leaf, noise in zip(leaves, noises, strict=True)]).sum()

    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in batch.items())
    return probe(proof, module, loss, f"a made batch ({shapes}{_scaled(proof)})", seed)


def probe_run(plan: RunPlan, config: DictConfig) -> Probe:
    """Sends the first batch of a run through its model, and the gradient of the run's loss back.

    Args:
        plan: Of the run.
        config: The whole config that it came from.

    Raises:
        BuilderError: A setting that a run refuses, those of its loggers and of `callbacks` apart; the data cannot be
            made; or its first batch does not fit the task or the model.
    """
    check_settings(config, plan.task)
    lit = assemble(plan)
    check_statistics(config, lit)
    with torch.random.fork_rng(devices=[]):
        pl.seed_everything(plan.config.get("seed", 0), verbose=False)
        data = instantiated(config.data, "data", pl.LightningDataModule)
        batch = check_first_batch(lit, plan.proof, data)
    scale_to_batch(lit, plan.proof, batch)
    shapes = ", ".join(
        f"{name} {list(part.shape)}" if isinstance(part, Tensor) else name
        for name, part in zip(lit.task.spec.batch, batch, strict=True)
    )
    seed = plan.config.get("init_seed", plan.config.get("seed", 0))
    return probe(
        plan.proof,
        lit.model,
        lambda: lit.task.loss(lit.model, batch),
        f"first batch ({shapes}{_scaled(plan.proof)}){_not_applied(config)}",
        seed,
    )


def _not_applied(config: DictConfig) -> str:
    """The settings of a run that a probe of its start does not follow, in words."""
    precision = config.trainer.get("precision")
    given = {
        "ckpt_path, these are the initial weights": config.ckpt_path is not None,
        f"trainer.precision={precision}, this is float32": str(precision) not in _FULL_PRECISION,
    }
    left_out = [what for what, is_given in given.items() if is_given]
    return f"; not applied: {'; '.join(left_out)}" if left_out else ""


def _scaled(proof: Proof) -> str:
    weights = len(needs_batch(proof.decisions))
    return f"; lsuv has scaled {weights} weight{'s' if weights > 1 else ''} on it" if weights else ""


def probe(proof: Proof, module: nn.Module, loss: Callable[[], Tensor], batch: str, seed: int) -> Probe:
    """Measures one forward and one backward pass.

    Args:
        proof: Of the model.
        module: The model, with its initial values.
        loss: Runs the module in train mode and gives one number.
        batch: What goes through the model, in words.
        seed: Of the random numbers of the pass, as dropout draws them.
    """
    watch, gradients, ran = OutputWatch(module, "*"), dict[str, Tensor](), dict[str, None]()
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.numel()}
    recorder = Recorder(named, outputs=watch)
    watch.attach()
    hooks = [
        layer.register_forward_hook(partial(_catch_gradient, gradients, ran, path))
        for path, layer in module.named_modules()
        if path
    ]
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            value = loss()
            value.backward()  # type: ignore[no-untyped-call]
        recorder.before_step()
        recorded = recorder.after_step(0, 0)
    finally:
        watch.detach()
        for hook in hooks:
            hook.remove()
        module.zero_grad(set_to_none=True)
    parameters = polars.DataFrame(recorded.parameters, schema=SCHEMA).with_columns(update_ratio=None, update_rms=None)
    outputs = polars.DataFrame(recorded.outputs, schema=OUTPUT_SCHEMA)
    scales = [float(gradients[path]) if path in gradients else None for path in outputs["layer"]]
    outputs = outputs.with_columns(polars.Series(GRADIENT, scales, dtype=polars.Float64))
    table = [asdict(row) | {"trainable": False} for row in rows(proof)]  # nothing has moved, and need not have
    depths, found = depths_judged(parameters, outputs, table), tuple(verdicts(parameters, outputs, table))
    judged = (*(f"{of} by depth" for of, depth in depths.items() if depth.is_judged), *_shares_judged(outputs))
    return Probe(
        batch,
        float(value.detach()),
        tuple(LayerScale(**row) for row in outputs.select("layer", "kind", *_KEPT, GRADIENT).iter_rows(named=True)),
        tuple(_weight_scales(proof, parameters)),
        found,
        judged=judged,
        unjudged=tuple(_unjudged(depths, outputs, ran)),
        is_healthy=bool(judged) and not found and not any(d.zeros and not d.is_judged for d in depths.values()),
    )


def _shares_judged(outputs: polars.DataFrame) -> Iterator[str]:
    for measure, what in (("dead", "dead units"), ("saturated", "saturated values")):
        if outputs[measure].is_not_null().any():
            yield what


def _unjudged(depths: Mapping[str, Depth], outputs: polars.DataFrame, ran: Iterable[str]) -> Iterator[str]:
    few = {of: depth.zeros for of, depth in depths.items() if not depth.is_judged}
    if few:
        takes = f"{LEAST_LAYERS} layers with weights, with numbers that are finite and not 0"
        zeros = [f"the {of} are exactly 0 in {count}" for of, count in few.items() if count]
        yield f"{' and '.join(few)} by depth, which takes {'; '.join([takes, *zeros])}"
    is_relu = polars.col("kind").str.to_lowercase().is_in(sorted(RELU_LIKE))
    relus = outputs.filter(is_relu & polars.col("dead").is_null())["layer"].to_list()
    if relus:
        takes = f"{LEAST_VALUES} values from {LEAST_SAMPLES} samples of each unit"
        yield f"dead units of {listed(relus)}, which takes {takes}"
    unseen = [path for path in ran if path not in outputs["layer"]]
    if unseen:
        yield f"what {listed(unseen)} gave out, which statistics cannot measure"


def _catch_gradient(
    found: dict[str, Tensor], ran: dict[str, None], path: str, module: nn.Module, inputs: Any, output: Any
) -> None:
    """Notes that a layer ran, and keeps the rms of the gradient of its first output.

    Of several calls, it is that of the first in forward order.
    """
    ran[path] = None
    for leaf in _tensors(output):
        if leaf.requires_grad:
            leaf.register_hook(partial(_keep_rms, found, path))  # type: ignore[no-untyped-call]
            return


def _keep_rms(found: dict[str, Tensor], path: str, gradient: Tensor) -> None:
    found[path] = gradient.detach().double().square().mean().sqrt()


def _tensors(output: Any) -> Iterator[Tensor]:
    match output:
        case Tensor():
            yield output
        case Mapping():
            yield from (leaf for value in output.values() for leaf in _tensors(value))
        case list() | tuple():
            yield from (leaf for value in output for leaf in _tensors(value))


def _weight_scales(proof: Proof, parameters: polars.DataFrame) -> Iterator[WeightScale]:
    entries = {entry.name: entry for entry in proof.parameters}
    for name, std, gradient in parameters.select("name", "std", GRADIENT).iter_rows():
        theory = parameter_theory(proof, entries[proof.ties.get(name, name)])
        yield WeightScale(name, entries[name].shape, None if theory is None else theory.std, std, gradient)


# ---- in a terminal -------------------------------------------------------------------------------------------------


def render(found: Probe) -> Group:
    """A probe for a terminal: the layers with bars on a log scale, the weights, the verdict in words."""
    layers = Table(
        title=f"{found.batch}; loss {found.loss:.4g}", title_justify="left", header_style="bold", box=box.SIMPLE_HEAD
    )
    for title in ("layer", "kind"):
        layers.add_column(title, overflow="fold", min_width=14)
    for title in ("output rms", "", "gradient rms", "", "dead, saturated"):
        layers.add_column(title, justify="right" if title else "left", no_wrap=True)
    bars = [_bars([layer.rms for layer in found.layers]), _bars([layer.gradient_rms for layer in found.layers])]
    for layer, output_bar, gradient_bar in zip(found.layers, *bars, strict=True):
        share = layer.dead if layer.dead is not None else layer.saturated
        shown = "" if share is None else f"{share:.0%}"
        layers.add_row(
            layer.layer, layer.kind, _number(layer.rms), output_bar, _number(layer.gradient_rms), gradient_bar, shown
        )
    weights = Table(header_style="bold", box=box.SIMPLE_HEAD)
    for title in ("parameter", "shape", "std in theory", "std as drawn", "gradient rms"):
        weights.add_column(title, justify="left" if title == "parameter" else "right", overflow="fold")
    for weight in found.weights:
        numbers = (weight.predicted_std, weight.std, weight.gradient_rms)
        weights.add_row(weight.name, " × ".join(map(str, weight.shape)) or "1", *map(_number, numbers))
    words = [f"{verdict.severity}: {verdict.text}" for verdict in found.verdicts] or [_healthy(found)]
    return Group(layers, weights, "\n".join([*words, *(f"not judged: {what}" for what in found.unjudged)]))


def _healthy(found: Probe) -> str:
    if not found.judged:
        return "all numbers are finite; nothing else could be judged"
    healthy = "healthy: " if found.is_healthy else ""
    return f"{healthy}all numbers are finite; within the bounds: {', '.join(found.judged)}"


def _bars(values: Sequence[float | None]) -> list[str]:
    """A bar for each value, from the least power of ten among them to the greatest."""
    logs = [math.log10(value) if value and math.isfinite(value) else None for value in values]
    known = [log for log in logs if log is not None]
    if not known:
        return [""] * len(values)
    low, high = math.floor(min(known)), math.ceil(max(known))
    return ["" if log is None else "█" * max(1, round(BAR * (log - low) / max(1, high - low))) for log in logs]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
