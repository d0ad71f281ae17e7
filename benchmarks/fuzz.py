"""Random and mutated model files: whatever the text, either a model is proved or a `BuilderError` comes out.

Three ways in: a `forward` (14 in 20), an `=` expression (5), a whole YAML file (1). A forward or an expression is a
mutation of programs that use every part of the language, or random tokens, or random characters; a file is a mutation
of those in conf/model. What is accepted goes on: its source is executed, and the module runs on meta. The process ends
with 1 where anything but a `BuilderError` came out, or one input took longer than `SLOW` seconds; such an input is
printed with its error, and can be run again by its number. How far it is goes to stderr; Ctrl-C ends it with 130 and
the counts so far.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import CONF, INTERRUPTED, say
from builder.build import prove
from builder.errors import BuilderError, Problem
from builder.evaluate import evaluate
from builder.expand import expand
from builder.language import LanguageError
from builder.load import Loaded, load
from builder.meta import on_meta
from builder.module import construct
from builder.shapes import check_shapes
from builder.source import render

SLOW = 5.0  # seconds; a forward of a few statements takes a hundredth
EVERY = 5.0  # seconds between two lines of progress
ENDS = ("proved", "refused", "wrong")
BASE: dict[str, Any] = {
    "args": {"d": 4, "n": 2, "wide": True, "dims": [4, 4]},
    "inputs": {"x": {"shape": ["batch", "=d"]}, "ids": {"shape": ["batch"], "dtype": "int64", "range": [0, 6]}},
    "blocks": {
        "Block": {
            "args": ["d"],
            "inputs": ["x"],
            "layers": {"fc": {"kind": "Linear", "in_features": "=d", "out_features": "=d"}},
            "forward": "x + relu(fc(x))",
        }
    },
    "layers": {
        "fc": {"kind": "Linear", "in_features": "=d", "out_features": "=d"},
        "e": {"kind": "Embedding", "num_embeddings": 6, "embedding_dim": "=d"},
        "h": {"kind": "Block", "d": "=d", "repeat": "=n"},
        "w": {"kind": "Parameter", "shape": ["=d", "=d"], "init": "normal"},
    },
    "buffers": {"scale": {"value": "=1 / sqrt(d)"}, "seen": {"value": "=zeros(d)"}},
}
FORWARDS = (
    "fc(x)",
    "for block in h:\n    x = block(x)\nreturn x",
    "y = e(ids) @ w\nreturn x * scale + y",
    "a, b = x.chunk(2, dim=-1)\nreturn cat([a, b], -1) if wide else a",
    "if training:\n    seen = 0.9 * seen + 0.1 * x.mean(0)\nreturn x - seen",
    "ys = [block(x) for block in h]\nreturn stack(ys).sum(0)",
    "for i, block in enumerate(h):\n    x = block(x) / (i + 1)\nreturn {'x': x, 'n': x.shape[0] * ones(1)}",
    "q = x.view(-1, n, d // n).transpose(0, 1)\nreturn softmax(q @ q.mT / sqrt(d), -1).flatten(1)",
    "return dropout(F.relu(x), 0.1, training), (x, x[:, 1:], x[..., None])",
    "z = where(x > 0, x, 0.0) if not training and d >= 4 else -x ** 2\nreturn linalg.norm(z) + z @ fc.weight.T",
    "for a, b in zip(h, range(n)):\n    x += a(x) * b\nreturn x.masked_fill(x < 0, 0)",
)
EXPRESSIONS = (
    "4 * d",
    "d // n + d % 3 - -1",
    "dims[-1] if wide else dims[0]",
    "[2 * v for v in dims if v > 1][0]",
    "sum(dims) + len(dims) + max(dims)",
    "int(sqrt(d)) + floor(pi)",
    "[a * b for a, b in zip(dims, dims[1:])][0]",
    "range(2, 8, 3)[0] + round(2.5)",
    "d if wide and d > 3 > 2 or not n else 0",
    "0.02 / sqrt(2 * n)",
)
WORDS = """
x ids y fc e h w scale seen block training d n wide dims self super torch nn F math linalg fft __class__ __import__ _x
if else elif for in while return not and or is None True False lambda def class import from as with try except del
yield await async global pass break continue ( ) [ ] { } , : ; . = == != < > <= >= + - * / // % ** @ & | ^ ~ << >> := ->
... ' " ''' \\ # 0 1 2 -1 3.5 1e9 10**9 1e400 1j 0x10 0b1 010 'a' b'a' f'{x}' relu gelu softmax view shape
T mT mean sum cat stack zeros arange where weight bias float long item numpy data grad detach clone to dtype float32
getattr eval open print len range zip enumerate max min abs int bool list tuple dict round sqrt pow é ｘ
""".split()  # noqa: SIM905 (a hundred words read better as text)
TOKENS = (*WORDS, "\n", "\n    ", " ", "\t", "\0", "\u200b")
WORD = re.compile(r"\w+|\s+|.", re.DOTALL)


class Fuzzer:
    """Makes inputs, each from its number alone, and proves them.

    Args:
        seed: What the inputs are drawn from.
        scratch: A file that inputs are written to.
    """

    def __init__(self, seed: int, scratch: Path) -> None:
        self.seed, self.scratch = seed, scratch
        self.files = [path.read_text(encoding="utf-8") for path in sorted((CONF / "model").glob("*.yaml"))]
        self.base = load(BASE)
        self.args = expand(self.base.spec).args

    def run(self, number: int) -> str:
        """Proves input `number`; returns what became of it."""
        kind, text = self.text(number)
        try:
            {"forward": self.forward, "expression": self.expression, "file": self.file}[kind](text)
        except BuilderError:
            return f"{kind}s refused"
        return f"{kind}s proved"

    def text(self, number: int) -> tuple[str, str]:
        """The kind of an input, and its text."""
        dice = random.Random(f"{self.seed} {number}")
        kind = dice.choices(("forward", "expression", "file"), (14, 5, 1))[0]
        seeds = {"forward": FORWARDS, "expression": EXPRESSIONS, "file": self.files}[kind]
        match dice.randrange(20):
            case 0 if kind != "file":
                return kind, "".join(dice.choice(TOKENS) + dice.choice(["", " "]) for _ in range(dice.randint(1, 30)))
            case 1:
                return kind, "".join(chr(dice.choice((dice.randrange(128), dice.randrange(0x3000)))) for _ in range(20))
        return kind, mutated(dice.choice(seeds), dice, seeds)

    def forward(self, text: str) -> None:
        """Renders a forward, executes the source, and runs the module on meta."""
        loaded = Loaded(self.base.spec.model_copy(update={"forward": text}), self.base.places, "fuzz")
        expansion = expand(loaded.spec)
        source, problems = render(loaded.spec, loaded.name)
        loaded.refuse(problems)
        assert source is not None, "source without problems"
        check_shapes(loaded, expansion, source, construct(loaded, source, expansion.args, on_meta))

    def expression(self, text: str) -> None:
        """Computes an expression as the loader does."""
        try:
            evaluate(f"={text}", self.args)
        except LanguageError as err:
            raise BuilderError("fuzz", [Problem("args", err.what, err.hint)]) from err

    def file(self, text: str) -> None:
        """Proves a whole file."""
        self.scratch.write_text(text, encoding="utf-8", errors="replace")
        prove(self.scratch)


def mutated(text: str, dice: random.Random, others: Sequence[str]) -> str:
    """A text with a few of its words deleted, doubled, swapped, replaced, or crossed with another text's."""
    words = WORD.findall(text)
    for _ in range(dice.choice((0, 1, 1, 1, 2, 3, 8))):
        at = dice.randrange(len(words) + 1)
        head, word, tail = words[:at], words[at : at + 1], words[at + 1 :]
        match dice.randrange(8):
            case 0:
                words = head + tail
            case 1:
                words = head + word + word + tail
            case 2:
                words = [*head, dice.choice(TOKENS), *tail]
            case 3:
                words = [*head, dice.choice(TOKENS), *word, *tail]
            case 4:
                words = head + tail[:1] + word + tail[1:]
            case 5:
                words = head + WORD.findall(dice.choice(others))[at:]
            case 6:
                words = [*head, chr(dice.randrange(0x500)), *word, *tail]
            case 7:  # a word of the text in another place of it
                words = [*head, dice.choice(words or [" "]), *tail]
    return "".join(words)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Random and mutated model files: only a BuilderError may come out.",
        epilog="examples:\n  python -m benchmarks.fuzz\n  python -m benchmarks.fuzz --inputs 1000 --seed 7\n"
        "  python -m benchmarks.fuzz --only 4711    one input again, with its text",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--inputs", type=int, default=200_000, help="how many (default: 200000)")
    parser.add_argument("--seed", type=int, default=0, help="what the inputs are drawn from (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input (default: 0)")
    parser.add_argument("--only", type=int, help="the number of one input, to run again")
    return parser.parse_args()


def told(numbers: Sequence[int], counts: Counter[str]) -> Iterator[int]:
    """The numbers; every few seconds a line to stderr says how far they are, and what became of them."""
    begin = said = time.perf_counter()
    for done, number in enumerate(numbers):
        if (now := time.perf_counter()) - said >= EVERY:
            said = now
            ended = {end: sum(n for what, n in counts.items() if what.endswith(end)) for end in ENDS}
            shown = ", ".join(f"{n:,} {end}" for end, n in ended.items())
            rate = done / (now - begin)
            say(f"{done:,} of {len(numbers):,}: {shown}; {rate:.0f} a second")
        yield number


def try_one(fuzzer: Fuzzer, number: int, counts: Counter[str]) -> None:
    """Proves an input and counts what became of it; one that went wrong is printed."""
    begin = time.perf_counter()
    try:
        counts[fuzzer.run(number)] += 1
    except Exception:
        counts["wrong"] += 1
        print(f"input {number}: {fuzzer.text(number)[1]!r}\n{traceback.format_exc()}")
    if (seconds := time.perf_counter() - begin) > SLOW:
        counts["wrong"] += 1
        print(f"input {number} took {seconds:.1f} s: {fuzzer.text(number)[1]!r}")


def main() -> int:
    given = arguments()
    warnings.simplefilter("ignore")  # torch's, about what mutated programs do
    numbers = range(given.first, given.first + given.inputs) if given.only is None else [given.only]
    counts, interrupted = Counter[str](), False
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(given.seed, Path(folder) / "m.yaml")
        if given.only is not None:
            print(fuzzer.text(given.only)[1])
        try:
            for number in told(numbers, counts):
                try_one(fuzzer, number, counts)
        except KeyboardInterrupt:
            interrupted = True
            say("interrupted; what became of the inputs until then:")
    wrong = counts.pop("wrong", 0)
    print(", ".join(f"{count:,} {what}" for what, count in sorted(counts.items())) + f"; {wrong} wrong")
    return INTERRUPTED if interrupted else int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
