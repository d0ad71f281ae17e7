"""The first batch, before training: real data through the real model, checked on the host.

An index outside an Embedding is an IndexError on a CPU and poisons the process on CUDA; here it is one clear error, as
is a batch of another shape or range than the model's `inputs` declare. Buffers and random state are left as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from builder.build import Proof
from builder.errors import BuilderError, Problem
from builder.lit_module import LitModule
from builder.module import dtype_name
from builder.shapes import check_batch, raise_from_forward
from builder.task import Batch


def check_first_batch(lit: LitModule, proof: Proof, data: pl.LightningDataModule) -> Batch:
    """The first training batch, once the task's loss and metrics have run on it, without gradients, in eval mode.

    Raises:
        BuilderError: The batch does not fit the task, the model's inputs or an Embedding's range.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        data.prepare_data()
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        if not isinstance(batch, list | tuple) or len(batch) != len(lit.task.spec.batch):
            size = len(batch) if isinstance(batch, list | tuple) else type(batch).__name__
            names = lit.task.spec.batch
            what = f"the data gives batches of {size}, the task names {len(names)}: {', '.join(names)}"
            raise BuilderError("task", [Problem("task.batch", what, "name each part of a batch, in order")])
        _run(lit, proof, batch)
    return batch


def _run(lit: LitModule, proof: Proof, batch: Any) -> None:
    model = lit.model
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    hooks = [model.register_forward_pre_hook(_inputs_check(proof), with_kwargs=True)]
    hooks += [
        module.register_forward_pre_hook(_range_check(name, proof))
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    ]
    model.eval()
    try:
        loss, given = lit.task.evaluate(model, batch)
        if not isinstance(loss, torch.Tensor) or loss.ndim or not loss.is_floating_point():
            what = f"the loss is {_shown(loss)}; one floating-point number is needed"
            raise BuilderError("task", [Problem("task.loss", what, "reduce it, as in cross_entropy(...) or .mean()")])
        for name, make in lit.task.make_metrics().items():
            make.update(*given[name])
    except BuilderError:
        raise
    except Exception as err:
        if _is_within(err, model):
            raise_from_forward(err, proof.loaded, proof.source, model)
        what = f"on the first batch ({', '.join(_shown(part) for part in batch)}): {str(err).splitlines()[0]}"
        raise BuilderError(
            "task", [Problem("task", what, "compare loss, outputs and metrics with the model's output and the data")]
        ) from err
    finally:
        for hook in hooks:
            hook.remove()
        model.train()
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def _inputs_check(proof: Proof) -> Callable[..., None]:
    def check(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(proof.loaded.spec.inputs, args, strict=False)) | kwargs
        problems: list[Problem] = []
        for name, value in given.items():
            spec = proof.loaded.spec.inputs.get(name)
            if spec is not None and isinstance(value, torch.Tensor):
                problems += check_batch(proof.expansion, name, spec, value)
        proof.loaded.refuse(problems)

    return check


def _range_check(name: str, proof: Proof) -> Callable[..., None]:
    def check(module: nn.Module, args: tuple[Any, ...]) -> None:
        rows = int(module.num_embeddings)  # type: ignore[arg-type]
        ids = args[0]
        if ids.numel() and (ids.min().item() < 0 or ids.max().item() >= rows):
            index = int(ids.max() if ids.max() >= rows else ids.min())
            what = f"index {index} in the first batch; {name!r} has rows 0 to {rows - 1}"
            address = next((i.address for i in proof.expansion.instances if i.path == name), name)
            proof.loaded.refuse([Problem(address, what, "raise num_embeddings, or mend the data")])

    return check


def _is_within(err: BaseException, model: nn.Module) -> bool:
    """Whether an exception arose within the model's forward."""
    traceback = err.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_locals.get("self") is model:
            return True
        traceback = traceback.tb_next
    return False


def _shown(part: Any) -> str:
    return f"{tuple(part.shape)} {dtype_name(part.dtype)}" if isinstance(part, torch.Tensor) else type(part).__name__
