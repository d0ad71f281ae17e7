"""builder: YAML to ordinary PyTorch, with every parameter accounted for.

    import builder
    model = builder.build("model.yaml", seed=0)     # an ordinary nn.Module
    builder.parameters(model)                       # the parameter table, as data
    print(builder.code("model.yaml"))               # the PyTorch it stands for
    lit = builder.lightning_module(cfg)             # a LightningModule

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
    from builder.lit_module import lightning_module
    from builder.stats.store import read_stats
    from builder.table import parameters

__all__ = ["BuilderError", "Problem", "build", "code", "lightning_module", "parameters", "prove", "read_stats"]

_HOMES = {
    "BuilderError": "errors",
    "Problem": "errors",
    "build": "build",
    "code": "code",
    "lightning_module": "lit_module",
    "parameters": "table",
    "prove": "build",
    "read_stats": "stats.store",
}


class _Package(ModuleType):
    """Keeps `builder.build` and `builder.code` the functions when the modules of those names are imported."""

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
