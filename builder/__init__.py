"""builder: YAML to ordinary PyTorch, with every parameter accounted for.

    import builder
    model = builder.build("model.yaml", seed=0)     # an ordinary nn.Module
    builder.parameters(model)                       # the parameter table, as data
    builder.explain(builder.prove("model.yaml"), "fc.weight")  # what decides one parameter
    print(builder.code("model.yaml"))               # the PyTorch it stands for
    lit = builder.lightning_module(cfg)             # a LightningModule
    builder.save(model, "out")                      # weights, source and table, which need no builder

The names below are imported on first use, so that `import builder` costs neither torch nor Lightning.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builder.build import build, prove
    from builder.code import code
    from builder.errors import BuilderError, Problem
    from builder.explain import explain
    from builder.export import load_weights, save
    from builder.hold import hold_frozen
    from builder.initialize.fill import initial_values, initialise
    from builder.lit_module import lightning_module
    from builder.stats.store import read_stats
    from builder.table import parameters
    from builder.verify import verify

__all__ = [
    "BuilderError",
    "Problem",
    "build",
    "code",
    "explain",
    "hold_frozen",
    "initial_values",
    "initialise",
    "lightning_module",
    "load_weights",
    "parameters",
    "prove",
    "read_stats",
    "save",
    "verify",
]

_HOMES = {
    "BuilderError": "errors",
    "Problem": "errors",
    "build": "build",
    "code": "code",
    "explain": "explain",
    "hold_frozen": "hold",
    "initial_values": "initialize.fill",
    "initialise": "initialize.fill",
    "lightning_module": "lit_module",
    "load_weights": "export",
    "parameters": "table",
    "prove": "build",
    "read_stats": "stats.store",
    "save": "export",
    "verify": "verify",
}


class _Package(ModuleType):
    """Keeps `builder.build`, `builder.code` and the like the functions when the modules of those names are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'builder' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"builder.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
