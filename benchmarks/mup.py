"""What init policy `mup` is for: a width changes neither how far activations move nor which learning rate is best.

Two checks of the maximal update parametrization (Yang et al. 2022, *Tensor Programs V*), each beside the standard
scheme of the same initial values at the base width (standard deviation 1/√fan-in, one learning rate for all):

- *Coordinates*, as in the paper's appendix D.1: a few steps of Adam or SGD at widths 64 to 1024; how large each layer's
  output is afterwards (rms over a fixed batch), and how far it has moved. With `mup` both stay within 10 % from one
  width to its double; with the standard scheme the logits move further at each.
- *Transfer*: the MLP on digits at widths 64 and 1024 over a grid of learning rates by factors of two. The best one, by
  the loss on all training data after a fixed number of steps, is with `mup` at most one grid step away.

The output layer begins at zero in both, as the paper's appendix D.2 advises. The process ends with 1 where a limit does
not hold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.figures import CONF, INTERRUPTED, gathered, say
from builder.lit_module import LitModule, RunPlan, assemble, plan_run
from recipes.data.batches import Batch, Rows
from recipes.data.digits import Digits
from recipes.data.text import Text

BASE, WIDTHS = 64, (64, 128, 256, 512, 1024)
FLAT = 0.10  # of change from one width to its double, at most, with mup
GROWING = 1.25  # times as far at each doubling, at least, the logits move without
RATES = tuple(2.0**power for power in range(-12, -3))
STEPS_APART = 1  # of the grid, at most, between the best rates of two widths with mup
STEPS = 5  # of the check of coordinates
FIT_STEPS, BATCH = 60, 64  # of the transfer
MUP, STANDARD = "mup", "standard"


# ---- models and data -----------------------------------------------------------------------------------------------


def mlp(width: int) -> dict[str, Any]:
    """The model of conf/model/digits_mlp.yaml at a width, without dropout."""
    data = _model("digits_mlp")
    return {**data, "args": {**data["args"], "hidden": width, "dropout": 0.0}}


def gpt(width: int) -> dict[str, Any]:
    """The model of conf/model/gpt.yaml at a width, in heads of 16, its output layer untied."""
    data = _model("gpt")
    del data["tie"], data["init"]
    return {**data, "args": {**data["args"], "d": width, "heads": width // 16}}


def _model(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


@cache
def images() -> Rows:
    """All training images of the digits."""
    return Digits().splits.train


@cache
def characters() -> Tensor:
    """The training part of the text as ids."""
    return Text().parts.train


def digits(seed: int, count: int) -> list[Batch]:
    """Batches of training images."""
    rows = images()
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.randint(len(rows), (BATCH,), generator=generator) for _ in range(count)]
    return [(rows.x[ids], rows.y[ids]) for ids in chosen]


def text(seed: int, count: int) -> list[Batch]:
    """Batches of four windows of training text."""
    ids = characters()
    generator = torch.Generator().manual_seed(seed)
    windows = [ids[torch.randint(len(ids) - 65, (4, 1), generator=generator) + torch.arange(65)] for _ in range(count)]
    return [(window[:, :-1], window[:, 1:]) for window in windows]


@dataclass(frozen=True)
class Case:
    """A model whose coordinates are checked.

    Attributes:
        name: What the figures call it.
        file: Its file in conf/model.
        base: Its arguments at the base width.
        layers: The modules that are watched; the last one gives the logits.
        loss: The task's loss.
        optimizer: A class of torch.optim and its learning rate.
        seeds: Over how many seeds figures are averaged at the least width; up to four times
            fewer at greater widths, where a model varies less and takes longer.
    """

    name: str
    file: str
    base: Mapping[str, int]
    layers: tuple[str, ...]
    loss: str
    optimizer: tuple[str, float]
    seeds: int

    def model(self, width: int) -> dict[str, Any]:
        """The model file's data at a width."""
        return mlp(width) if self.file == "digits_mlp" else gpt(width)

    def batches(self, seed: int, count: int) -> list[Batch]:
        """Real data."""
        return digits(seed, count) if self.file == "digits_mlp" else text(seed, count)

    def rules(self, scheme: str) -> dict[str, Any]:
        """The init rules of a scheme; both give the same distributions at the base width."""
        if scheme == MUP:
            policy = {"policy": "mup", "base": dict(self.base)}
            return {
                "all": {"except": ["head.weight", "gain"], **policy},
                "head": {"match": "head.weight", **policy, "std": 0},
            }
        return {
            "matrices": {"kind": "Linear", "min_ndim": 2, "policy": "kaiming_normal", "nonlinearity": "linear"},
            "head": {"match": "head.weight", "policy": "zeros"},
            "biases": {"match": "*.bias", "policy": "zeros"},
        }


MLP = Case(
    "digits_mlp, Adam", "digits_mlp", {"hidden": BASE}, ("act1", "act2", "head"), "cross_entropy(model(a), b)",
    ("Adam", 2.0**-9), 64,
)  # fmt: skip
SGD = replace(MLP, name="digits_mlp, SGD", optimizer=("SGD", 0.5))
GPT = Case(
    "gpt, Adam", "gpt", {"d": BASE, "heads": BASE // 16}, ("wte", "h.0", "h.1", "head"),
    "cross_entropy(model(a).flatten(0, 1), b.flatten())", ("Adam", 2.0**-9), 16,
)  # fmt: skip
CASES = {"mlp": MLP, "sgd": SGD, "gpt": GPT}


def planned(case: Case, scheme: str, width: int) -> RunPlan:
    """The model of a case under a scheme, with its optimizer, proved."""
    name, rate = case.optimizer
    return plan_run(
        {
            "model": case.model(width),
            "init": case.rules(scheme),
            "task": {"batch": ["a", "b"], "loss": case.loss},
            "optimizer": {"_target_": f"torch.optim.{name}", "lr": rate},
        }
    )


def seeded(plan: RunPlan, seed: int) -> LitModule:
    """A module of a plan, its initial values from a seed."""
    return assemble(replace(plan, config={**plan.config, "init_seed": seed}))


def fit(lit: LitModule, batches: Sequence[Batch]) -> None:
    """One step of the optimizer on each batch."""
    optimizer = lit.configure_optimizers()
    for batch in batches:
        optimizer.zero_grad()
        lit.task.loss(lit.model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


# ---- coordinates ---------------------------------------------------------------------------------------------------


def outputs(lit: LitModule, layers: Sequence[str], batch: Batch) -> dict[str, Tensor]:
    """What some modules put out for a batch."""
    found: dict[str, Tensor] = {}
    hooks = [
        lit.model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: found.__setitem__(name, output.detach().clone())
        )
        for name in layers
    ]
    with torch.no_grad():
        lit.model(batch[0])
    for hook in hooks:
        hook.remove()
    return found


def coordinates(case: Case, scheme: str, widths: Sequence[int], seeds: int) -> dict[str, dict[str, list[float]]]:
    """`change` and `scale` → layer → rms at each width: of what its output moved by, and of the output itself."""
    found: dict[str, dict[str, list[float]]] = {key: {name: [] for name in case.layers} for key in ("change", "scale")}
    for width in widths:
        each: dict[str, dict[str, list[float]]] = {key: {name: [] for name in case.layers} for key in found}
        plan = planned(case, scheme, width)
        for seed in range(max(seeds // 4, seeds * widths[0] // width, 1)):
            probe, *batches = case.batches(seed, STEPS + 1)
            lit = seeded(plan, seed)
            before = outputs(lit, case.layers, probe)
            fit(lit, batches)
            for name, after in outputs(lit, case.layers, probe).items():
                each["change"][name].append((after - before[name]).square().mean().sqrt().item())
                each["scale"][name].append(after.square().mean().sqrt().item())
        for key, layers in each.items():
            for name, values in layers.items():
                found[key][name].append(statistics.fmean(values))
        say(f"{case.name}  {scheme}  width {width}: logits moved by {found['change'][case.layers[-1]][-1]:.4f}")
    return found


def growths(values: Sequence[float]) -> list[float]:
    """Each value over the one before it."""
    return [after / before for before, after in itertools.pairwise(values)]


def is_flat(found: Mapping[str, Mapping[str, Sequence[float]]]) -> bool:
    """Whether every layer's scale and change keep within `FLAT` from each width to the next."""
    return all(
        abs(growth - 1) <= FLAT for layers in found.values() for values in layers.values() for growth in growths(values)
    )


def growth_of_logits(case: Case, found: Mapping[str, Mapping[str, Sequence[float]]]) -> float:
    """How many times as far the logits move at each doubling, as a geometric mean."""
    values = found["change"][case.layers[-1]]
    return math.exp(math.log(values[-1] / values[0]) / (len(values) - 1))


def coordinate_lines(case: Case, scheme: str, widths: Sequence[int], found: Mapping[str, Any]) -> list[str]:
    """The figures as text."""
    lines = [f"{f'{case.name}, {scheme}: rms after {STEPS} steps':<46}" + "".join(f"{width:>9}" for width in widths)]
    for key, layers in found.items():
        for name, values in layers.items():
            ratios = " ".join(f"{growth:.2f}" for growth in growths(values))
            shown = "".join(f"{value:>9.4f}" for value in values)
            lines.append(f"  {key} of {name}".ljust(46) + f"{shown}   x {ratios}")
    return lines


# ---- transfer ------------------------------------------------------------------------------------------------------


def final_losses(scheme: str, width: int, seeds: int) -> list[float]:
    """The loss on all training images at the end of a fit, averaged over seeds, for each learning rate."""
    found = []
    rows = images()
    for rate in RATES:
        losses = []
        plan = planned(replace(MLP, optimizer=("Adam", rate)), scheme, width)
        for seed in range(seeds):
            lit = seeded(plan, seed)
            fit(lit, digits(seed, FIT_STEPS))
            with torch.no_grad():
                losses.append(lit.task.loss(lit.model, (rows.x, rows.y)).item())
        found.append(statistics.fmean(losses))
        say(f"digits  {scheme}  width {width}  lr 2^{math.log2(rate):.0f}: {found[-1]:.4f}")
    return found


def best(losses: Sequence[float]) -> int:
    """The place of the best learning rate in the grid."""
    return min(range(len(losses)), key=lambda place: losses[place] if math.isfinite(losses[place]) else math.inf)


# ---- figures -------------------------------------------------------------------------------------------------------


def check_coordinates(case: Case, given: argparse.Namespace) -> dict[str, Any]:
    """One model under both schemes."""
    seeds = given.seeds or case.seeds
    found = {scheme: coordinates(case, scheme, given.widths, seeds) for scheme in (MUP, STANDARD)}
    growth = {scheme: growth_of_logits(case, found[scheme]) for scheme in found}
    lines = [line for scheme in found for line in coordinate_lines(case, scheme, given.widths, found[scheme])]
    flat = is_flat(found[MUP])
    lines.append(
        f"{case.name}: with mup {'all' if flat else 'NOT all'} within {FLAT:.0%} a doubling; logits move "
        f"{growth[MUP]:.2f} times as far a doubling, {growth[STANDARD]:.2f} without"
    )
    passed = flat and growth[STANDARD] >= GROWING
    return {
        "check": f"coordinates of {case.name}",
        "passed": passed,
        "growth of logits": growth,
        "rms": found,
        "lines": lines,
    }


def check_transfer(given: argparse.Namespace) -> dict[str, Any]:
    """The best learning rate at the least and the greatest width under both schemes."""
    ends = (given.widths[0], given.widths[-1])
    seeds = given.seeds or 4
    found = {scheme: {width: final_losses(scheme, width, seeds) for width in ends} for scheme in (MUP, STANDARD)}
    lines = [f"digits: loss after {FIT_STEPS} steps; lr 2^" + "".join(f"{math.log2(r):>8.0f}" for r in RATES)]
    for scheme, losses in found.items():
        for width, values in losses.items():
            shown = "".join(f"{value:>8.4f}" for value in values)
            lines.append(f"  {f'{scheme}, width {width}':<34}{shown}   best 2^{math.log2(RATES[best(values)]):.0f}")
    moved = {scheme: best(losses[ends[1]]) - best(losses[ends[0]]) for scheme, losses in found.items()}
    lines.append(
        f"digits: from width {ends[0]} to {ends[1]} the best rate moves by {moved[MUP]:+d} grid steps with mup, "
        f"{moved[STANDARD]:+d} without"
    )
    passed = abs(moved[MUP]) <= STEPS_APART < abs(moved[STANDARD])
    return {"check": "transfer on digits", "passed": passed, "grid steps": moved, "losses": found, "lines": lines}


def checked(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name, case in CASES.items():
        if name in given.checks:
            yield check_coordinates(case, given)
    if "transfer" in given.checks:
        yield check_transfer(given)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Coordinate check of policy mup, and transfer of the learning rate on digits.",
        epilog="Ends with 1 where a limit does not hold. All of it takes about 4 minutes on one core.",
    )
    checks = [*CASES, "transfer"]
    parser.add_argument("--checks", nargs="+", choices=checks, default=checks, help="only these (default: all)")
    parser.add_argument(
        "--widths", nargs="+", type=int, default=list(WIDTHS), help=f"multiples of 16 (default: {WIDTHS})"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        help="average over so many (default: 64 mlp and sgd, 16 gpt, all fewer at greater widths; 4 transfer)",
    )
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON; progress goes to stderr")
    given = parser.parse_args()
    if len(given.widths) < 2 or any(width < 16 or width % 16 for width in given.widths):
        parser.error("--widths are two or more multiples of 16")
    if given.threads < 1 or (given.seeds is not None and given.seeds < 1):
        parser.error("--seeds and --threads are 1 or more")
    return given


def main() -> int:
    given = arguments()
    torch.set_num_threads(given.threads)
    started = time.perf_counter()
    results, interrupted = gathered(checked(given))
    passed = all(result["passed"] for result in results)
    if given.json:
        print(json.dumps({"passed": passed and not interrupted, "results": results}, indent=2))
    else:
        print("\n\n".join("\n".join(result["lines"]) for result in results))
        failed = ", ".join(result["check"] for result in results if not result["passed"])
        verdict = f"limits do not hold: {failed}" if failed else "limits hold"
        print(f"\n{verdict} ({time.perf_counter() - started:.0f} s)")
    return INTERRUPTED if interrupted else 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
