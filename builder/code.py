"""The generated source of a model file, as text.

Torch is not needed to read it, unless a freeze rule keeps modules in eval mode: which ones is read off the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.expand import expand
from builder.load import Places, Source, load
from builder.source import render


def code(
    source: Source,
    *,
    args: Mapping[str, Any] | None = None,
    freeze: Mapping[str, Any] | None = None,
    places: Places | None = None,
    name: str = "",
) -> str:
    """The PyTorch module that a model file stands for.

    Args:
        source: Path of a model file, a mapping, or a DictConfig.
        args: Values for the model's args; they become the defaults of `__init__`.
        freeze: Named freeze rules in addition to the model's; those with `eval` are seen in the source.
        places: Where the keys of a mapping stand, for messages.
        name: A name for the model, if it is not that of the file.

    Raises:
        BuilderError: The file is not a model.
    """
    loaded = load(source, args, places=places, name=name)
    loaded.refuse(expand(loaded.spec).problems)
    if freeze or any(rule.eval for rule in loaded.spec.freeze.values()):
        from builder.build import prove  # noqa: PLC0415 (other sources are printed without torch)

        return prove(source, args=args, freeze=freeze, places=places, name=name).source.text
    rendered, problems = render(loaded.spec, loaded.name)
    loaded.refuse(problems)
    assert rendered is not None, "source without problems"
    return rendered.text
