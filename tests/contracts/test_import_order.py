"""A module imports only from those above it; torch begins at `module`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

BUILDER = Path(__file__).parents[2] / "builder"
BEFORE_TORCH = [
    "errors",
    "whole",
    "allowed",
    "names",
    "policies",
    "language",
    "evaluate",
    "rendering",
    "spec",
    "schema",
    "owners",
    "load",
    "layout",
    "expand",
    "source",
]
WITH_TORCH = [
    "parallel",
    "compiled",
    "meta",
    "module",
    "repeats",
    "shapes",
    "buffers",
    "tie",
    "freeze",
    "initialize",
    "verify",
    "build",
    "table",
    "code",
]
ORDER = BEFORE_TORCH + WITH_TORCH
FILES = [
    file
    for name in ORDER
    for file in (
        [BUILDER / f"{name}.py"] if (BUILDER / f"{name}.py").exists() else sorted((BUILDER / name).rglob("*.py"))
    )
]


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(BUILDER)))
def test_module_imports_only_from_those_above_it(file):
    own = file.relative_to(BUILDER).parts[0].removesuffix(".py")
    inside = file.parent != BUILDER
    # One edge crosses the drawn order on purpose: an init rule and a freeze rule refuse the same empty matches.
    for name in imported(file):
        if not name.startswith("builder."):
            assert own not in BEFORE_TORCH or name.split(".")[0] not in ("torch", "pytorch_lightning"), name
            continue
        other = name.split(".")[1]
        assert other in ORDER, f"{own} imports {other}, which stands below the core"
        assert ORDER.index(other) < ORDER.index(own) or (inside and other == own), f"{own} imports {other}"


@pytest.mark.parametrize("name", ["builder", *(f"builder.{name}" for name in [*BEFORE_TORCH, "code"])])
def test_module_above_the_line_imports_neither_torch_nor_lightning(name):
    check = f"import sys, {name}; assert not {{'torch', 'pytorch_lightning', 'hydra'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
