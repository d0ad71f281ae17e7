"""Random models that run: what the property tests of the laws draw from.

Each takes `x` (batch, d) and `ids` (batch,), adds up what its layers give, and returns (batch, d).
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

D = 4  # width of every model
ROWS = 6  # of every Embedding
RANDOM_POLICIES = ["normal", "uniform", "trunc_normal", "xavier_normal", "kaiming_uniform", "orthogonal"]
OWN_POLICIES = [
    {"policy": "expression", "value": "=where(abs(u) >= 1, u * v, i0 - i1)", "draws": {"u": "normal", "v": "uniform"}},
    {"policy": "values", "values": [[row - column / 3 for column in range(D)] for row in range(D)]},
]

MATRIX = {"kind": "Parameter", "shape": ["=d", "=d"], "axes": ["in", "out"]}
PIECES: dict[str, tuple[dict[str, Any], str]] = {  # kind of piece: layer, and what forward adds of it
    "linear": ({"kind": "Linear", "in_features": "=d", "out_features": "=d"}, "{name}(x)"),
    "plain": ({"kind": "Linear", "in_features": "=d", "out_features": "=d", "bias": False}, "tanh({name}(x))"),
    "norm": ({"kind": "LayerNorm", "normalized_shape": "=d"}, "{name}(x)"),
    "batch": ({"kind": "BatchNorm1d", "num_features": "=d"}, "{name}(x)"),
    "embedding": ({"kind": "Embedding", "num_embeddings": ROWS, "embedding_dim": "=d"}, "{name}(ids)"),
    "padded": ({"kind": "Embedding", "num_embeddings": ROWS, "embedding_dim": "=d", "padding_idx": 0}, "{name}(ids)"),
    "matrix": (MATRIX, "x @ {name}"),
    "vector": ({"kind": "Parameter", "shape": ["=d"]}, "x * {name}"),
    "block": ({"kind": "Block", "d": "=d", "repeat": 2}, "{name}[1]({name}[0](x))"),
}
SQUARE = {"linear", "plain", "matrix"}  # pieces with a (d, d) matrix, which can be tied to each other
TABLES = {"embedding", "padded"}  # and those with a (ROWS, d) one
BLOCK = {
    "args": ["d"],
    "inputs": ["x"],
    "layers": {
        "fc": {"kind": "Linear", "in_features": "=d", "out_features": "=d"},
        "drop": {"kind": "Dropout", "p": 0.1},
        "gain": {"kind": "Parameter", "shape": ["=d"], "init": "ones"},
    },
    "forward": "x + drop(relu(fc(x))) * gain",
}


@st.composite
def models(draw: st.DrawFn, *, least: int = 1, most: int = 5, ties: bool = True) -> dict[str, Any]:
    """A model file as plain data; layers are called by their kind of piece and a number: `linear_0`."""
    kinds = draw(st.lists(st.sampled_from(sorted(PIECES)), min_size=least, max_size=most))
    layers, terms = {}, ["x"]
    for number, kind in enumerate(kinds):
        name = f"{kind}_{number}"
        layer, term = PIECES[kind]
        layers[name] = dict(layer)
        if kind == "matrix":
            layers[name]["init"] = draw(st.sampled_from([*RANDOM_POLICIES, *OWN_POLICIES]))
        if kind == "vector":
            layers[name]["init"] = draw(st.sampled_from(["ones", "normal", "uniform"]))
        terms.append(term.format(name=name))
    data: dict[str, Any] = {
        "args": {"d": D},
        "inputs": {
            "x": {"shape": ["batch", "=d"]},
            "ids": {"shape": ["batch"], "dtype": "int64", "range": [0, ROWS]},
        },
        "layers": layers,
        "buffers": {
            "scale": {"value": "=1 / sqrt(d)", "persistent": draw(st.booleans())},
            "offset": {"value": "=arange(d) / d", "persistent": draw(st.booleans())},
        },
        "forward": f"({' + '.join(terms)}) * scale + offset",
    }
    if "block" in kinds:
        data["blocks"] = {"Block": BLOCK}
    chosen = [name for name in layers if name.split("_")[0] in SQUARE]
    square = [name if name.startswith("matrix") else f"{name}.weight" for name in chosen]
    tables = [f"{name}.weight" for name in layers if name.split("_")[0] in TABLES]
    for names in (square, tables) if ties else ():
        if len(names) >= 2 and draw(st.booleans()):
            owner, alias = names[0], names[-1]
            layers[alias.partition(".")[0]].pop("init", None)
            data.setdefault("tie", {})[alias] = owner
    tied = {name for pair in data.get("tie", {}).items() for name in pair}
    free = [name for name in square if name not in tied]
    if free and draw(st.booleans()):
        data["init"] = {
            "late": {"match": draw(st.sampled_from(free)), "policy": draw(st.sampled_from(RANDOM_POLICIES))}
        }
    copies = [name for name in free if name.startswith("matrix")]
    if copies and len(free) >= 2 and draw(st.booleans()):
        copy = draw(st.sampled_from(copies))
        of = draw(st.sampled_from([name for name in free if name != copy]))
        layers[copy]["init"] = {"policy": "copy", "of": of}
    return data


def batch(seed: int = 0, size: int = 5) -> dict[str, torch.Tensor]:
    """Inputs of a random model."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(size, D, generator=generator),
        "ids": torch.randint(0, ROWS, (size,), generator=generator),
    }
