"""The price of YAML: forward and backward of models built from `conf/model`, over the same models of transformers.

Each model is built with the weights of a small reference, by its scheme `conf/init/*_huggingface.yaml`, and both must
give the same outputs before anything is timed. Built and reference then take turns, one step each, in the order
A B B A, in one process: a pair is two neighbouring steps, its ratio is built over reference, and the figure is the
median over all pairs. GPT-2 is compared with a module written by hand as well. The process ends with 1 where a ratio is
above its limit.

Needs the extra `zoo`; `--control` times each reference over itself, which is what the method makes of no difference.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from omegaconf import OmegaConf
from torch import Tensor, nn

import builder
from benchmarks.figures import CONF, INTERRUPTED, gathered, say
from benchmarks.step import HandGpt

REFERENCE, HAND, ITSELF = "reference", "hand", "itself"
LIMITS = {REFERENCE: 1.00, HAND: 1.02}

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A model file and its reference.

    Attributes:
        name: The file in conf/model.
        args: Its args.
        path: Rule of the scheme that takes the checkpoint's path.
        reference: Makes the reference, without dropout.
        inputs: Makes the inputs of both, in order.
        built: Calls the built model, for one tensor.
        call: Calls the reference, for the same tensor.
    """

    name: str
    args: dict[str, Any]
    path: str
    reference: Callable[[], Any]
    inputs: Callable[[], tuple[Tensor, ...]]
    built: Call
    call: Call


# ---- what is compared ----------------------------------------------------------------------------------------------


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=8192, n_positions=256, n_embd=384, n_layer=4, n_head=6, bos_token_id=0, eos_token_id=0,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=8192, hidden_size=384, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=500000.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def bert() -> Any:
    config = transformers.BertConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertModel(config)


def vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768, num_labels=1000,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def resnet18() -> Any:
    config = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=1000
    )
    return transformers.ResNetForImageClassification(config)


def sentences() -> tuple[Tensor, ...]:
    ids, mask = torch.randint(30522, (8, 128)), torch.arange(128) < torch.randint(64, 129, (8, 1))
    return ids, torch.zeros_like(ids), mask


def call_bert(model: Any, ids: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
    return model(ids, attention_mask=mask.long(), token_type_ids=segments).last_hidden_state  # type: ignore[no-any-return]


def call_language_model(model: Any, ids: Tensor) -> Tensor:
    return model(ids, use_cache=False).logits  # type: ignore[no-any-return]


def call_image_model(model: Any, images: Tensor) -> Tensor:
    return model(images).logits  # type: ignore[no-any-return]


def plain(model: Any, *inputs: Tensor) -> Tensor:
    output = model(*inputs)
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


CASES = (
    Case(
        "gpt2",
        {"vocab": 8192, "context": 256, "d": 384, "heads": 6, "depth": 4},
        "weights",
        gpt2,
        lambda: (torch.randint(8192, (4, 128)),),
        plain,
        call_language_model,
    ),
    Case(
        "llama3",
        {"vocab": 8192, "d": 384, "depth": 4, "heads": 6, "kv_heads": 2, "hidden": 1024},
        "embed",
        llama,
        lambda: (torch.randint(8192, (4, 128)),),
        plain,
        call_language_model,
    ),
    Case("bert", {"d": 256, "heads": 4, "depth": 4, "hidden": 1024}, "word", bert, sentences, plain, call_bert),
    Case(
        "vit",
        {"d": 192, "heads": 3, "depth": 6, "hidden": 768},
        "token",
        vit,
        lambda: (torch.randn(4, 3, 224, 224),),
        plain,
        call_image_model,
    ),
    Case("resnet18", {}, "stem", resnet18, lambda: (torch.randn(8, 3, 112, 112),), plain, call_image_model),
)


def built(case: Case, reference: Any) -> nn.Module:
    """The model of a case with the reference's weights."""
    scheme = OmegaConf.create({"init": OmegaConf.load(CONF / "init" / f"{case.name}_huggingface.yaml")})
    with tempfile.TemporaryDirectory() as folder:
        (reference.transformer if case.name == "gpt2" else reference).save_pretrained(folder)
        scheme.init[case.path].path = str(Path(folder) / "model.safetensors")
        rules: Any = OmegaConf.to_container(scheme, resolve=True)
        return builder.build(CONF / "model" / f"{case.name}.yaml", args=case.args, init=rules["init"])


def by_hand(model: nn.Module, case: Case) -> nn.Module:
    """GPT-2 written by hand, with the built model's weights."""
    hand = HandGpt(**case.args)
    hand.load_state_dict(model.state_dict())
    return hand


# ---- time ----------------------------------------------------------------------------------------------------------


def step(model: nn.Module, call: Call, inputs: Sequence[Tensor], towards: Tensor) -> float:
    """Seconds of one forward and backward."""
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    torch.autograd.backward((call(model, *inputs) * towards).sum())
    return time.perf_counter() - start


def measure(case: Case, against: str, pairs: int) -> dict[str, Any]:
    """The ratio of the built model to its other side, over pairs of steps."""
    torch.manual_seed(0)
    reference = case.reference().train()
    model = built(case, reference).train()
    sides: list[tuple[nn.Module, Call]] = [(model, case.built), (reference, case.call)]
    if against == HAND:
        sides[1] = (by_hand(model, case), plain)
    elif against == ITSELF:
        sides[0] = sides[1]
    inputs = case.inputs()
    with torch.no_grad():
        outputs = [call(module, *inputs) for module, call in sides]
    apart = (outputs[0] - outputs[1]).abs().max().item()
    if apart > 1e-4:
        raise SystemExit(f"{case.name}: outputs differ by {apart}")
    towards = torch.randn_like(outputs[0])
    for module, call in sides * 2:
        step(module, call, inputs, towards)
    seconds: list[list[float]] = [[], []]
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            module, call = sides[side]
            seconds[side].append(step(module, call, inputs, towards))
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    lower, middle, upper = statistics.quantiles(ratios, n=4)
    say(f"{case.name} over {against}: {middle:.4f}")
    return {
        "model": case.name,
        "over": against,
        "ratio": middle,
        "quartiles": [lower, upper],
        "pairs": pairs,
        "milliseconds": [1000 * statistics.median(values) for values in seconds],
        "limit": LIMITS.get(against),
    }


def measured(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for case in CASES:
        if case.name in given.models:
            sides = [REFERENCE, *([HAND] if case.name == "gpt2" else []), *([ITSELF] if given.control else [])]
            yield from (measure(case, against, given.pairs) for against in sides)


def table(results: Sequence[dict[str, Any]]) -> str:
    """The figures as text."""
    lines = [f"{'model':<10}{'over':<11}{'ratio':>8}{'limit':>7}  {'quartiles':<16}{'ms':>8} /{'ms':>8}{'pairs':>7}"]
    for result in results:
        quartiles = "{:.3f} to {:.3f}".format(*result["quartiles"])
        limit = f"{result['limit']:.2f}" if result["limit"] else ""
        first, second = result["milliseconds"]
        lines.append(
            f"{result['model']:<10}{result['over']:<11}{result['ratio']:>8.4f}{limit:>7}  {quartiles:<16}"
            f"{first:>8.2f} /{second:>8.2f}{result['pairs']:>7}"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(
        description="Forward and backward of built models over transformers' and hand-written ones, in one run.",
        epilog=f"Ends with 1 where a ratio is above its limit: {LIMITS[REFERENCE]:.2f} over the reference, "
        f"{LIMITS[HAND]:.2f} over a hand-written twin.",
    )
    parser.add_argument("--pairs", type=int, default=40, help="pairs of steps a comparison (default: 40)")
    parser.add_argument("--models", nargs="+", choices=names, default=names, help="only these (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: 1)")
    parser.add_argument("--control", action="store_true", help="also each reference over itself")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON; progress goes to stderr")
    given = parser.parse_args()
    if given.pairs < 2 or given.threads < 1:
        parser.error("--pairs is 2 or more, --threads 1 or more")
    return given


def main() -> int:
    given = arguments()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(given.threads)
    results, interrupted = gathered(measured(given))
    over = [result for result in results if result["limit"] and result["ratio"] > result["limit"]]
    passed = not over and not interrupted
    print(json.dumps({"passed": passed, "results": results}, indent=2) if given.json else table(results))
    return INTERRUPTED if interrupted else 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
