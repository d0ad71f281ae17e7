"""One picture of a model's initial values, and of the memory that they replaced.

A number in a table does not show a distribution, and nobody believes in uninitialised memory until it is seen: the
last panel is what `torch.empty` holds in place of a declared value. That memory is arbitrary; it differs from run to
run, may look harmless, and is never used. Refuses names that are not parameters of the model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytorch_lightning as pl
import torch
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, ValidationError
from torch import Tensor, nn

from builder.errors import Problem, did_you_mean, raise_all
from recipes.arguments import check_installed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUBJECT = "picture of initial values"
FILE_NAME = "initial_values.png"
BINS = 40
SHOWN = 6  # values of arbitrary memory that are written out
ALLOCATIONS = 16
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny  # below it a float32 is denormal

# Okabe and Ito's colours, told apart with any colour vision.
BLUE, ORANGE, GREEN, VERMILION, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#222222"


class Expected(BaseModel):
    """What theory expects of a parameter's initial values, which have mean zero."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(description="Heading of the panel.")
    distribution: Literal["uniform", "normal"] = Field(description="Shape of the density.")
    std: StrictFloat = Field(gt=0, description="Standard deviation.")

    @property
    def edge(self) -> float:
        """How far the drawn density reaches: the bound of a uniform one, four deviations of a normal one."""
        return self.std * (math.sqrt(3) if self.distribution == "uniform" else 4)

    def density(self, x: Tensor) -> Tensor:
        """Probability density at each x."""
        if self.distribution == "normal":
            return torch.exp(-0.5 * (x / self.std) ** 2) / (self.std * math.sqrt(2 * math.pi))
        return torch.where(x.abs() <= self.edge, 1 / (2 * self.edge), 0.0)


class InitialHistograms(pl.Callback):
    """Draws the initial values of some parameters when a fit starts, as `initial_values.png`.

    A fit that resumes from a checkpoint draws nothing, for its values are not initial ones.

    Args:
        directory: Where the picture goes.
        parameters: For each dotted name what theory expects: `title`, `distribution` (uniform or normal) and `std`.

    Raises:
        BuilderError: An expectation is malformed, a name is no parameter, or matplotlib is not installed.
    """

    def __init__(self, directory: str | Path, parameters: Mapping[str, Mapping[str, object]]) -> None:
        check_installed(SUBJECT, "callbacks.picture", module="matplotlib", package="matplotlib")
        self.directory = Path(directory)
        self.expected = _read(parameters)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws, on the first process of a fresh fit."""
        if trainer.is_global_zero and trainer.ckpt_path is None:
            model = pl_module.model
            assert isinstance(model, nn.Module), "a LightningModule of the builder has its module under `model`"
            write(draw(self._initial_values(model), self.expected), self.directory / FILE_NAME)

    def _initial_values(self, model: nn.Module) -> dict[str, Tensor]:
        values = {name: parameter.detach().float().cpu() for name, parameter in model.named_parameters()}
        raise_all(
            SUBJECT,
            [
                Problem(f"callbacks.picture.parameters.{name}", "no such parameter", hint=did_you_mean(name, values))
                for name in self.expected
                if name not in values
            ],
        )
        return {name: values[name] for name in self.expected}


def draw(values: Mapping[str, Tensor], expected: Mapping[str, Expected]) -> Figure:
    """A figure of one panel a parameter, and one of uninitialised memory in the shape of the first.

    Args:
        values: Initial values by dotted name.
        expected: What theory expects, by the same names.
    """
    # Imported here: an extra, and a third of a second of start-up. No pyplot: it keeps figures in global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    shape = next(iter(values.values())).shape
    rows = (len(values) + 2) // 2
    figure = Figure(figsize=(12, 4.2 * rows), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 2).flatten().tolist()
    for panel, name, colour in zip(panels, values, _cycle([BLUE, ORANGE, GREEN], len(values)), strict=False):
        _draw_values(panel, name, values[name], expected[name], colour)
    _draw_memory(panels[len(values)], uninitialised(shape))
    for unused in panels[len(values) + 1 :]:
        unused.set_axis_off()
    return figure


def write(figure: Figure, file: Path) -> None:
    """Writes a figure as PNG, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    figure.savefig(unfinished, format="png")
    os.replace(unfinished, file)


def describe(values: Tensor) -> str:
    """Count, mean, standard deviation and range, in three lines."""
    return (
        f"{values.numel():,} values\n"
        f"mean {values.mean():+.4f},  std {values.std():.4f}\n"
        f"range {values.min():+.4f} to {values.max():+.4f}"
    )


def uninitialised(shape: Sequence[int]) -> Tensor:
    """Memory as `torch.empty` gives it: the fullest of some allocations.

    A page that comes fresh from the operating system is all zeros, which hides what a reused one shows; so several
    are asked for, each while the earlier ones are still held. The fullest may still be all zeros.
    """
    held = [torch.empty(tuple(shape)) for _ in range(ALLOCATIONS)]
    return max(held, key=lambda memory: int(memory.count_nonzero()))


def describe_memory(memory: Tensor) -> str:
    """What arbitrary memory holds: kinds of values, magnitudes, and a few of them from lowest to highest."""
    finite = memory[memory.isfinite()]
    magnitudes = finite[finite != 0].abs()
    reach = f"{magnitudes.min():.2g} to {magnitudes.max():.2g}" if len(magnitudes) else "there are none"
    some = memory.flatten().sort().values[:: math.ceil(memory.numel() / SHOWN)].tolist()
    return "\n".join(
        [
            f"{memory.numel():,} values that nobody declared (the fullest of {ALLOCATIONS} allocations)",
            f"zero {int((memory == 0).sum()):,},  denormal {int((magnitudes < SMALLEST_NORMAL).sum()):,},  "
            f"not finite {memory.numel() - len(finite):,}",
            f"magnitudes other than zero: {reach}",
            "from lowest to highest:  " + "   ".join(f"{value:.2g}" for value in some),
        ]
    )


def _cycle(colours: Sequence[str], count: int) -> list[str]:
    return [colours[i % len(colours)] for i in range(count)]


def _read(parameters: Mapping[str, Mapping[str, object]]) -> dict[str, Expected]:
    problems: list[Problem] = []
    expected: dict[str, Expected] = {}
    for name, fields in parameters.items():
        try:
            expected[name] = Expected.model_validate(dict(fields))
        except ValidationError as error:
            address = f"callbacks.picture.parameters.{name}"
            for found in error.errors():
                problems.append(Problem(".".join([address, *map(str, found["loc"])]), found["msg"]))
    if not parameters:
        problems.append(Problem("callbacks.picture.parameters", "no parameter given, at least one needed"))
    raise_all(SUBJECT, problems)
    return expected


def _draw_values(panel: Axes, name: str, values: Tensor, expected: Expected, colour: str) -> None:
    panel.hist(values.flatten().numpy(), bins=BINS, density=True, color=colour, alpha=0.75, label="initial values")
    x = torch.linspace(-1.15, 1.15, 1001) * expected.edge
    label = f"expected: {expected.distribution}, std {expected.std:.4g}"
    panel.plot(x.numpy(), expected.density(x).numpy(), color=INK, linewidth=1.6, label=label)
    _title(panel, f"{name}  {tuple(values.shape)}", expected.title)
    _note(panel, describe(values))
    panel.set_ylim(top=panel.get_ylim()[1] * 1.5)  # room for the note and the legend
    panel.set_xlabel("value")
    panel.set_ylabel("density")
    panel.legend(loc="upper right", frameon=False, fontsize=9)


def _draw_memory(panel: Axes, memory: Tensor) -> None:
    finite = memory[memory.isfinite() & (memory != 0)].abs()
    panel.hist(finite.double().log10().numpy(), bins=BINS, range=(-46, 39), color=VERMILION, alpha=0.75)
    panel.axvline(torch.tensor(SMALLEST_NORMAL).log10().item(), ymax=0.6, color=INK, linestyle=":", linewidth=1.2)
    _title(panel, f"torch.empty{tuple(memory.shape)}", "what an uninitialised Parameter would have held")
    _note(panel, describe_memory(memory))
    panel.set_xlabel("magnitude, power of ten (denormal left of the dotted line)")
    panel.set_ylabel("values")
    panel.set_ylim(0, panel.get_ylim()[1] * 1.6)


def _title(panel: Axes, name: str, title: str) -> None:
    panel.set_title(f"{name}\n{title}", loc="left", fontsize=11, color=INK)
    panel.spines[["top", "right"]].set_visible(False)


def _note(panel: Axes, text: str) -> None:
    panel.text(0.02, 0.97, text, transform=panel.transAxes, va="top", fontsize=9, color=INK, linespacing=1.5)
