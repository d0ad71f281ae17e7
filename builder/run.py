"""One run, from a composed config to its artefacts: checked, built, fitted, tested.

Nothing but the config is written before the config is proved and a first batch has gone through the model. Then the run
directory gets `model.py`, `parameters.json`, metrics, events, statistics, `verdicts.json`, checkpoints,
`weights.safetensors`, `result.json` and `report.html`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_type_hints

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor
from pytorch_lightning.loggers import Logger, WandbLogger
from rich.console import Console
from rich.table import Table

from builder.config import Origin, unresolved
from builder.errors import BuilderError, Problem, did_you_mean, raise_all
from builder.export import WEIGHTS, is_sharded, save_weights, write_text
from builder.first_batch import check_first_batch
from builder.lit_module import LitModule, assemble, plan_run, scale_to_batch
from builder.progress import BestCheckpoint, LastCheckpoint, SaveOnException, is_terminal, progress
from builder.report.page import REPORT
from builder.report.write import write_report
from builder.resume import check_tensors, read_checkpoint
from builder.stats.callback import ParameterStatistics, shared_directories
from builder.stats.guards import NonFiniteGuard, VerdictsFile
from builder.stats.settings import IN_CONFIG, check_outputs, faults, parameters_of, selector
from builder.table import as_data, parameters, render_table
from builder.task import Task

Made = TypeVar("Made")

# What Lightning says of choices that are made here on purpose.
_EXPECTED = (
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*The dirpath has changed from.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*GPU available but not used.*",
    ".*module\\(s\\) in eval mode at the start of training.*",
    ".*scheduler is using 'interval': 'epoch'.*",
)


def run(config: DictConfig, origin: Origin, console: Console | None = None) -> dict[str, float]:
    """Fits and tests what a config says; returns the final metrics.

    Raises:
        BuilderError: The config is refused; the run directory then holds the config alone. Or the training failed: what
            was learned of it is in the run directory, as after any other error and after Ctrl-C.
    """
    console = console or Console(width=None if is_terminal() else 120)
    directory = Path(config.run_dir)
    started = time.perf_counter()
    write_text(directory / "config.yaml", _resolved(config))
    _quieten()
    plan = plan_run(config, places=origin.places, name=origin.name, scheme_name=origin.scheme_name)
    check_settings(config, plan.task)
    checkpoint = None if config.ckpt_path is None else str(config.ckpt_path)
    pl.seed_everything(plan.config.get("seed", 0), workers=True, verbose=False)
    data = instantiated(config.data, "data", pl.LightningDataModule)
    trainer = make_trainer(config, directory)
    lit = assemble(plan)
    check_statistics(config, lit)
    raise_all("statistics", shared_directories(trainer))
    if checkpoint is not None:
        _check_checkpoint(checkpoint, lit)
    batch = check_first_batch(lit, plan.proof, data)
    scale_to_batch(lit, plan.proof, batch)
    _write_model(directory, lit, plan.proof.source.text, console)
    for report in plan.proof.pretrained:
        console.print(str(report), soft_wrap=True, highlight=False)
    with _closed(trainer.loggers):
        try:
            fitted = _fit(trainer, lit, data, checkpoint)
            _say_cost(trainer, console)
            metrics = _final_metrics(trainer, lit, data, test=bool(config.test))
            _write_weights(directory, trainer, lit)
        except BaseException as err:
            located = origin.locate(err) if isinstance(err, BuilderError) else err
            _leave(directory, located, time.perf_counter() - started, report=trainer.is_global_zero)
            raise
    references = {str(key): float(value) for key, value in getattr(data, "references", {}).items()}
    write_result(directory, "ok", time.perf_counter() - started, metrics=metrics, references=references)
    if trainer.is_global_zero:
        _write_report(directory, console)
    console.print(_result_table(metrics, references, fitted))
    console.print(f"[dim]run directory[/] {directory}", soft_wrap=True, highlight=False)
    return metrics


def write_result(
    directory: Path,
    status: Literal["ok", "failed", "interrupted"],
    seconds: float,
    *,
    error: str | None = None,
    metrics: Mapping[str, float] | None = None,
    references: Mapping[str, float] | None = None,
) -> None:
    """Writes a run's `result.json`, with the overrides that Hydra wrote beside it."""
    overrides = directory / ".hydra" / "overrides.yaml"
    result = {
        "overrides": OmegaConf.to_container(OmegaConf.load(overrides)) if overrides.is_file() else [],
        "status": status,
        "error": error,
        "metrics": dict(metrics or {}),
        "references": dict(references or {}),
        "seconds": round(seconds, 3),
    }
    write_text(directory / "result.json", json.dumps(result, indent=2) + "\n")


def _leave(directory: Path, err: BaseException, seconds: float, *, report: bool) -> None:
    """Leaves what a run that did not come to its end can show."""
    interrupted = isinstance(err, KeyboardInterrupt | SystemExit)  # Lightning makes the one into the other
    error = None if interrupted else str(err) or type(err).__name__
    write_result(directory, "interrupted" if interrupted else "failed", seconds, error=error)
    if report:
        _write_report(directory, Console(stderr=True))
        print(f"the run so far: {directory / REPORT}", file=sys.stderr)


def _write_report(directory: Path, console: Console) -> None:
    """Writes `report.html`; a run whose result stands does not fail on the picture of it."""
    try:
        write_report(directory)
    except Exception as err:  # whatever it is: hours of training are behind it
        what = f"no report was written: {type(err).__name__}: {err}"
        console.print(what, soft_wrap=True, highlight=False, markup=False)


# ---- stages --------------------------------------------------------------------------------------------------------


def make_trainer(config: DictConfig, directory: Path) -> pl.Trainer:
    """The Lightning trainer of a config, with its callbacks and loggers.

    Raises:
        BuilderError: Hardware that is not there, or a callback that a run has already.
    """
    settings = _plain(config.trainer, "trainer")
    loggers = [instantiated(node, f"logger.{name}", Logger) for name, node in config.logger.items() if node]
    callbacks = _callbacks(config, directory)
    try:
        return pl.Trainer(
            **settings,
            default_root_dir=directory,
            logger=loggers or False,
            callbacks=callbacks,
            enable_model_summary=False,
            enable_progress_bar=is_terminal(),
        )
    except (MisconfigurationException, TypeError, ValueError) as err:
        hint = (
            "use trainer=auto or trainer=cpu"
            if settings.get("accelerator") in ("gpu", "cuda")
            else "mend the trainer's settings"
        )
        raise BuilderError("config", [Problem("trainer", str(err).splitlines()[0], hint)]) from err
    except RuntimeError as err:  # two callbacks whose states a checkpoint could not tell apart, and the like
        what = str(err).splitlines()[0]
        about_callbacks = "callback" in what
        address, hint = (
            ("callbacks", "leave all but one out; a run has some of its own, such as those of `stats`")
            if about_callbacks
            else ("trainer", "mend the trainer's settings")
        )
        raise BuilderError("config", [Problem(address, what, hint)]) from err


def _callbacks(config: DictConfig, directory: Path) -> list[pl.Callback]:
    checkpoints = directory / "checkpoints"
    found: list[pl.Callback] = [
        BestCheckpoint(
            checkpoints,
            "best",
            monitor=config.monitor,
            mode=config.mode,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        ),
        LastCheckpoint(checkpoints, "last", enable_version_counter=False),
        SaveOnException(checkpoints / "interrupted.ckpt"),
        progress(),
    ]
    if any(config.logger.values()):
        found.append(LearningRateMonitor())
    if config.early_stopping.patience is not None:
        found.append(EarlyStopping(config.monitor, mode=config.mode, patience=config.early_stopping.patience))
    stats = _plain(config.stats, "stats")
    enabled, action = stats.pop("enabled"), stats.pop("on_nonfinite", "stop")
    guard = NonFiniteGuard(action, stats.get("every_n_steps", 50))
    if enabled:  # the guard reads what the watch counted
        found += [ParameterStatistics(**stats, directory=directory), guard, VerdictsFile(directory)]
    else:
        found.append(guard)
    return found + [instantiated(node, f"callbacks.{name}", pl.Callback) for name, node in config.callbacks.items()]


def _fit(trainer: pl.Trainer, lit: LitModule, data: pl.LightningDataModule, checkpoint: str | None) -> float:
    started = time.perf_counter()
    try:
        trainer.fit(lit, datamodule=data, ckpt_path=checkpoint)
    except MisconfigurationException as err:  # what Lightning notices only with model and data at hand
        problem = Problem("trainer", str(err).splitlines()[0], "mend the trainer's settings")
        raise BuilderError("config", [problem]) from err
    return time.perf_counter() - started


@contextmanager
def _closed(loggers: Sequence[Logger]) -> Iterator[None]:
    """Ends a run at wandb as well, which keeps one to a process: the next job of a sweep would be written into it."""
    code = 1
    try:
        yield
        code = 0
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger) and logger._experiment is not None:  # `experiment` would begin one
                logger._experiment.finish(code)


def _say_cost(trainer: pl.Trainer, console: Console) -> None:
    for callback in cast(list[pl.Callback], trainer.callbacks):  # type: ignore[attr-defined]
        if isinstance(callback, ParameterStatistics) and trainer.is_global_zero:
            console.print(f"[dim]{callback.words()}[/]", soft_wrap=True, highlight=False)


def _final_metrics(trainer: pl.Trainer, lit: LitModule, data: Any, *, test: bool) -> dict[str, float]:
    logged = trainer.callback_metrics.items()
    metrics = {name: value.item() for name, value in logged if not name.startswith("lr-")}  # LearningRateMonitor's
    if test:
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        found = trainer.test(lit, datamodule=data, ckpt_path=best or None, verbose=False)
        metrics |= found[0] if found else {}
    return {name: float(value) for name, value in sorted(metrics.items())}


def _write_weights(directory: Path, trainer: pl.Trainer, lit: LitModule) -> None:
    """Writes the weights of the best checkpoint, which are those that were tested; without one, the last.

    Of a sharded model all processes take part: each loads its own part, and the first writes what is gathered.
    """
    best = str(getattr(trainer.checkpoint_callback, "best_model_path", ""))
    sharded = is_sharded(lit.model)
    if best and sharded:
        trainer.strategy.load_checkpoint(best)
    elif best:
        lit.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])
    if trainer.is_global_zero or sharded:
        save_weights(lit.model, directory / WEIGHTS)


def _check_path(config: DictConfig) -> list[Problem]:
    """What is wrong with the file that the run is to go on from."""
    path = Path(str(config.ckpt_path))
    if config.ckpt_path is None or path.is_file():
        return []
    near = sorted(p.name for p in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
    hint = did_you_mean(path.name, near) or "runs keep theirs in RUN/checkpoints"
    return [Problem("ckpt_path", f"no checkpoint {str(path)!r}", hint)]


def _check_checkpoint(path: str, lit: LitModule) -> None:
    """Refuses a checkpoint from which the run cannot go on, before Lightning has begun."""
    saved = read_checkpoint(path)
    problems = check_tensors(
        saved["state_dict"], {name: tuple(value.shape) for name, value in lit.state_dict().items()}
    )
    raise_all("config", problems or lit.check_resume(saved))


# ---- what the run itself is told -----------------------------------------------------------------------------------


def check_settings(config: DictConfig, task: Task) -> None:
    """Refuses wrong values of the keys at the top of a config, of `stats` and of `trainer`.

    Raises:
        BuilderError: Of all of them at once.
    """
    problems = []
    metrics = ["train/loss", "val/loss", *(f"val/{name}" for name in task.spec.metrics)]
    for key in ("monitor", "scheduler.monitor"):
        watched = OmegaConf.select(config, key)
        if watched not in metrics and not (watched is None and key != "monitor"):
            problems.append(Problem(key, f"no metric {watched!r} in this task", did_you_mean(watched, metrics)))
    if config.mode not in ("min", "max"):
        problems.append(Problem("mode", f"unknown mode {config.mode!r}", did_you_mean(config.mode, ["max", "min"])))
    if not isinstance(config.test, bool):
        problems.append(Problem("test", f"got {config.test!r}", "true or false"))
    patience = config.early_stopping.patience
    if patience is not None and (isinstance(patience, bool) or not isinstance(patience, int) or patience < 0):
        hint = "validations without improvement, a whole number; null: never stop early"
        problems.append(Problem("early_stopping.patience", f"got {patience!r}", hint))
    if not isinstance(config.callbacks, DictConfig):
        problems.append(Problem("callbacks", f"got {config.callbacks!r}", "give callbacks by name: {NAME: {...}}"))
    problems += [*_check_stats(config), *_check_trainer(_plain(config.trainer, "trainer")), *_check_path(config)]
    raise_all("config", problems)


def _check_stats(config: DictConfig) -> list[Problem]:
    """What is wrong with the settings of statistics, on or off."""
    if not isinstance(config.stats, DictConfig):
        return [Problem("stats", f"got {config.stats!r}", "choose stats=default or stats=none")]
    unknown = [
        Problem(f"stats.{key}", "unknown key", did_you_mean(key, IN_CONFIG, most=20))
        for key in map(str, config.stats)
        if key not in IN_CONFIG
    ]
    given = {"enabled": None, **_plain(config.stats, "stats")}
    return unknown + faults(**{key: value for key, value in given.items() if key in IN_CONFIG})


def _check_trainer(settings: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with a trainer's settings, by the types that its signature declares."""
    known = get_type_hints(pl.Trainer.__init__)
    problems = []
    for key, value in settings.items():
        if key not in known:
            what = f"Trainer has no argument {key!r}"
            problems.append(Problem(f"trainer.{key}", what, did_you_mean(key, known, most=20)))
            continue
        try:
            TypeAdapter(known[key], config=ConfigDict(arbitrary_types_allowed=True, strict=True)).validate_python(value)
        except ValidationError:
            declared = str(known[key]).replace("typing.", "").replace("NoneType", "None")
            problems.append(Problem(f"trainer.{key}", f"got {value!r}", f"Trainer declares {declared}"))
    return problems


def check_statistics(config: DictConfig, lit: LitModule) -> None:
    """Refuses what the callback would refuse when the fit starts, after Lightning has started its loggers.

    Raises:
        BuilderError: A selector or a glob of `stats` that matches nothing, or a parameter that cannot be measured.
    """
    stats = _plain(config.stats, "stats")
    if not stats["enabled"]:
        return
    problems: list[Problem] = []
    for check in (
        lambda: parameters_of(lit.model, selector(stats.get("select"))),
        lambda: check_outputs(lit.model, stats.get("outputs") or ()),
    ):
        try:
            check()
        except BuilderError as err:
            problems += err.problems
    raise_all("statistics", problems)


# ---- config and artefacts ------------------------------------------------------------------------------------------


def _resolved(config: DictConfig) -> str:
    try:
        return OmegaConf.to_yaml(config, resolve=True)
    except OmegaConfBaseException as err:
        raise unresolved(err) from err


def _plain(node: DictConfig, section: str) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict), f"{section} is a mapping"
    return {str(key): value for key, value in plain.items()}


def instantiated(node: Any, section: str, kind: Callable[..., Made]) -> Made:
    """What `_target_` makes of its arguments, which has to be of a kind."""
    hint = f"mend {section}._target_ or its arguments"
    try:
        made = instantiate(node)
    except InstantiationException as err:
        cause: BaseException | None = err
        while cause is not None:
            if isinstance(cause, BuilderError):
                raise cause from err
            last, cause = cause, cause.__cause__
        what = " ".join(str(err).splitlines()[0].split())
        raise BuilderError("config", [Problem(section, what if last is err else str(last), hint)]) from err
    if not isinstance(made, cast(type, kind)):  # mypy takes no abstract class for a type[Made]
        raise BuilderError("config", [Problem(section, f"makes a {type(made).__name__}, not a {kind.__name__}", hint)])
    return cast(Made, made)


def _write_model(directory: Path, lit: LitModule, source: str, console: Console) -> None:
    table = parameters(lit.model)
    write_text(directory / "model.py", source)
    write_text(directory / "parameters.json", json.dumps(as_data(table), indent=2) + "\n")
    console.print(render_table(table, type(lit.model).__name__))


def _result_table(metrics: Mapping[str, float], references: Mapping[str, float], fitted: float) -> Table:
    shown = Table("metric", "value", title=f"result after {fitted:.1f} s of training", title_justify="left")
    shown.columns[1].justify = "right"
    for name, value in metrics.items():
        shown.add_row(name, f"{value:.4f}")
    for name, value in references.items():
        shown.add_row(f"[dim]for comparison: {name}[/]", f"[dim]{value:.4f}[/]")
    return shown


def _quieten() -> None:
    for pattern in _EXPECTED:
        warnings.filterwarnings("ignore", pattern)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    torch.set_float32_matmul_precision("highest")
