"""A trained model as three files that need no builder: weights, source, parameter table.

`weights.safetensors` holds each tensor once: a tie under its owner, with the other names in the file's metadata.
`model.py` is the generated source, in which the args that the model was built with are the defaults.
`parameters.json` is the parameter table. Each file is whole or absent. `load_weights` reads tensors back and refuses a
file that does not fit before it changes a value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from builder import whole
from builder.build import proof_of
from builder.errors import BuilderError, Problem, did_you_mean, raise_all
from builder.initialize.files.checkpoints import open_checkpoint
from builder.initialize.files.tensor_file import Checkpoint, CheckpointError
from builder.initialize.shards import is_shard
from builder.module import uncompiled
from builder.owners import owners
from builder.table import as_data, parameters
from builder.verify import verify

WEIGHTS = "weights.safetensors"


def save(module: nn.Module, directory: str | Path) -> None:
    """Writes a built module as `weights.safetensors`, `model.py` and `parameters.json`.

    Of a sharded module every process calls it; its parts are gathered, and the first process writes.

    Args:
        module: A built module.
        directory: Where the files go; it is made if it is missing.

    Raises:
        BuilderError: The module was not built by builder, is not what its model file says any more (see `verify`), has
            other tensors than its source would make, or the files cannot be written there.
    """
    proof, module = proof_of(module), uncompiled(module)
    declared = proof.meta.state_dict()
    other = [
        Problem(name, f"is {tensor.dtype}, and the source makes {declared[name].dtype}", "convert it after export")
        for name, tensor in module.state_dict().items()
        if name in declared and tensor.dtype != declared[name].dtype
    ]
    raise_all(f"export of {proof.source.class_name}", [*_changed(module, declared), *other])
    table = json.dumps(as_data(parameters(module)), indent=2) + "\n"
    directory = Path(directory)
    save_weights(module, directory / WEIGHTS)
    if is_first_process():
        write_text(directory / "model.py", proof.source.text)
        write_text(directory / "parameters.json", table)


def save_weights(module: nn.Module, file: str | Path) -> None:
    """Writes the parameters and persistent buffers of a built module as safetensors, a tie once.

    The metadata holds the class name (`model`) and the ties (`ties`, JSON: name → source and transpose). Of a sharded
    module every process calls it; its parts are gathered one tensor at a time, and the first process writes.

    Raises:
        BuilderError: The module was not built by builder, is not what its model file says any more (see `verify`), has
            other tensors than its source would make, a tie that its file does not declare, or cannot be written there.
    """
    proof, module = proof_of(module), uncompiled(module)
    subject = f"export of {proof.source.class_name}"
    raise_all(subject, _changed(module, proof.meta.state_dict()))
    verify(module)
    tensors = {name: tensor for name, tensor in module.state_dict().items() if name not in proof.ties}
    raise_all(subject, _shared(tensors))
    ties = {name: tie.model_dump() for name, tie in owners(proof.loaded.spec.tie)[0].items()}
    metadata = {"format": "pt", "model": proof.source.class_name, "ties": json.dumps(ties)}
    sharded = is_sharded(module)
    packed = {}
    for name, tensor in tensors.items():
        gathered = tensor.full_tensor() if is_shard(tensor) else tensor
        if not sharded or is_first_process():
            packed[name] = _packed(gathered)
    if packed:
        with whole.refused("export", Path(file), kinds=(OSError, SafetensorError)):
            whole.write_whole(Path(file), lambda part: save_file(packed, part, metadata))


def is_sharded(module: nn.Module) -> bool:
    """Whether a process holds only a part of some tensor of a module, so that all have to take part in an export."""
    return any(map(is_shard, module.state_dict().values()))


def is_first_process() -> bool:
    """Whether this is the one process, or the first of several."""
    return not (torch.distributed.is_available() and torch.distributed.is_initialized()) or (
        torch.distributed.get_rank() == 0
    )


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Gives a built module the values of a file; a module on meta gets its memory from them.

    A tie may stand in the file under one of its names or under all. Buffers that no file holds are recomputed, and
    frozen parameters stay frozen.

    Args:
        module: A built module.
        path: A `weights.safetensors`, the directory that holds one, or another file of tensors that the policy
            `pretrained` reads.

    Raises:
        BuilderError: There is no such file, it is damaged, or a name, shape or dtype does not fit; nothing changed.
    """
    proof, module = proof_of(module), uncompiled(module)
    file = Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)
    needed = module.state_dict()
    on_meta = any(tensor.is_meta for tensor in needed.values())
    try:
        checkpoint = open_checkpoint(file)
        keys = checkpoint.keys()
        raise_all(f"weights {file}", _misfits(checkpoint, needed, proof.ties))
        # What is read may be a view of the file, which a module must not keep: the file can change.
        state = {key: checkpoint.read(key).clone() if on_meta else checkpoint.read(key) for key in keys}
    except CheckpointError as err:
        raise BuilderError(f"weights {file}", [Problem("weights", err.what, err.hint)]) from err
    module.load_state_dict(state, assign=on_meta)
    verify(module)


# ---- what may be written -------------------------------------------------------------------------------------------


def _changed(module: nn.Module, declared: Mapping[str, torch.Tensor]) -> list[Problem]:
    """What the exported source would not make: tensors that came, went or have another shape since the build."""
    found = module.state_dict()
    hint = "the model file has to declare what is exported"
    problems = [Problem(name, "is in the module, and its source makes no such tensor", hint) for name in found]
    problems = [problem for problem in problems if problem.address not in declared]
    for name, tensor in declared.items():
        if name not in found:
            problems.append(Problem(name, "is gone from the module, and its source makes it", hint))
        elif found[name].shape != tensor.shape:
            what = f"is {tuple(found[name].shape)}, and the source makes {tuple(tensor.shape)}"
            problems.append(Problem(name, what, hint))
    return problems


def _shared(tensors: Mapping[str, Any]) -> list[Problem]:
    """Tensors that are one without a tie: written once they would come back as one name, written twice as two."""
    first: dict[tuple[object, ...], str] = {}
    problems = []
    for name, tensor in tensors.items():
        local = tensor.to_local() if is_shard(tensor) else tensor
        place = (local.device, local.data_ptr() if local.numel() else name)
        if tensor.numel() and place in first:
            hint = f"declare tie: {{{name}: {first[place]}}}, or give it values of its own"
            problems.append(Problem(name, f"shares memory with {first[place]!r}, and no tie says so", hint))
        first.setdefault(place, name)
    return problems


def _packed(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU, contiguous and alone in its memory."""
    packed = tensor.detach().cpu().contiguous()
    return packed.clone() if packed.untyped_storage().nbytes() != packed.nbytes else packed


def write_text(file: Path, text: str) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        BuilderError: It cannot be written there.
    """
    with whole.refused("export", file):
        whole.write_text(file, text)


# ---- what may be read ----------------------------------------------------------------------------------------------


def _misfits(checkpoint: Checkpoint, needed: Mapping[str, torch.Tensor], ties: Mapping[str, str]) -> list[Problem]:
    """What does not fit between a file and a module's state, by name."""
    keys = dict.fromkeys(checkpoint.keys())
    if not keys.keys() & needed.keys():
        what = f"none of its {len(keys)} names is the model's: {_some(keys)}"
        return [Problem("weights", what, f"the model has: {_some(needed)}")]
    problems = [
        Problem(key, "is in the file, and the model has no such name", did_you_mean(key, needed, most=6))
        for key in keys
        if key not in needed
    ]
    given = {ties.get(key, key) for key in keys}
    problems += [
        Problem(name, "is missing from the file", did_you_mean(name, keys.keys() - needed.keys(), most=6))
        for name in needed
        if name not in ties and name not in given
    ]
    for name, tensor in needed.items():
        if name in keys and checkpoint.shape(name) != tuple(tensor.shape):
            what = f"is {checkpoint.shape(name)} in the file and {tuple(tensor.shape)} in the model"
            problems.append(Problem(name, what, "build the model with the args that the file was made with"))
        elif name in keys and checkpoint.dtype(name) != tensor.dtype:
            what = f"is {checkpoint.dtype(name)} in the file and {tensor.dtype} in the model"
            problems.append(Problem(name, what, "convert the module with .to(...) first, or the file"))
    return problems


def _some(names: Mapping[str, object]) -> str:
    return ", ".join(list(names)[:4]) + (", ..." if len(names) > 4 else "")
