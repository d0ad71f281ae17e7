"""Lines of generated source break where `ruff format` breaks them, and mean what they meant."""

# ruff: noqa: E501 (lines that are too long are what is tested)

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

import builder
from builder.layout import layout

MODELS = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))
RUFF = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
FURTHER = [  # what no shipped model has
    "x = (self.a_single_part_of_a_tuple(positions),)",
    "x = y[:, (0, 1)] + y[(0, 1),] + y[..., (1,)] + z[()]",
    "x = [] if heads is None else [1, 2, 3, *others]",
    "return dict(logits=self.head(x), hidden=x) if self.training else dict(logits=self.head(x))",
    "x = a_tensor_with_a_long_name[:, : self.width + 1] * another_one[..., -self.width :] ** 2",
    "if self.training and self.depth > 3 and x.shape[0] not in (1, 2) or not self.has_bias_somewhere:",
    "for k, (weight, bias) in enumerate(zip(self.weights_of_the_layers, self.biases_of_the_layers, strict=True)):",
    "scores = -(queries @ keys.mT - self.relative_bias(positions)[None, None]).abs().sum(-1) / self.width**0.5",
    "self.register_buffer('table', torch.as_tensor(1 / theta ** (torch.arange(0, d, 2) / d)), persistent=False)",
    "return x @ self.weight + self.bias, {'mean': x.mean(-1, keepdim=True), 'largest': x.amax(-1), 'kind': 'linear'}",
    "y = x[0] if depth == 0 else x[1] if depth == 1 else x[2] if depth == 2 else torch.stack([x[0], x[1], x[2], x[3]])",
    "def forward(self, inputs_of_the_encoder, inputs_of_the_decoder, mask_of_the_encoder=None, mask_of_the_decoder=None):",
    "def __init__(self, a_first_argument_of_this_class=1.0, another_argument_of_this_class=(64, 128, 256), p='same'):",
    "w = self.norm(x).unflatten(-1, (self.heads, self.d // self.heads)).transpose(1, 2).softmax(-1)[:, :, 0].contiguous()",
    "h = [self.layers[i](x[:, i], states[i] if states is not None else zeros) for i in range(self.depth) if i % 2 == 0]",
    "x = not (self.first_condition_of_the_model == self.second_condition_of_the_model) in (True, False, None, 1, 2, 3, 4)",
]


def parsed(lines, text=""):
    return ast.dump(ast.parse("\n".join(["if 1:", *lines]) + text))


@pytest.fixture(scope="module")
def lines():
    """The lines of all shipped models as the source gives them to be laid out, and some further ones."""
    given = dict.fromkeys(FURTHER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builder.source.layout", lambda line, indent: given.setdefault(line) or layout(line, indent))
        for file in MODELS:
            builder.code(file)
    return [line for line in given if line not in ("", "else:") and not line.startswith(("class ", "@"))]


def formatted(lines, width):
    """What ruff makes of each line, all of them in one run."""
    bodies = [
        f"        {line}{' pass' if line.endswith(':') else ''}\n        mark{i}\n" for i, line in enumerate(lines)
    ]
    text = "class A:\n    def f():\n" + "".join(bodies)
    command = [RUFF, "format", "--isolated", "--line-length", str(width), "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, _, body = done.stdout.partition("def f():\n")
    return [part.strip("\n").removesuffix("\n            pass") for part in re.split(r"\n\s+mark\d+\n", body)[:-1]]


@pytest.mark.skipif(RUFF is None, reason="ruff is not installed")
@pytest.mark.parametrize("width", [100, 88, 60])
def test_line_breaks_where_the_formatter_breaks_it(lines, width):
    found = ["\n".join(layout(line, 8, width)) for line in lines]
    expected = formatted(lines, width)
    assert len(found) == len(expected)
    for line, ours, theirs in zip(lines, found, expected, strict=True):
        assert ours == theirs, line


@pytest.mark.parametrize("width", [100, 60, 20, 1])
def test_broken_line_means_what_it_meant(lines, width):
    for line in lines:
        body = " pass" if line.endswith(":") else ""
        assert parsed(layout(line, 8, width), body) == parsed([f"        {line}"], body), line


def test_line_that_fits_stands_as_it_is():
    assert layout("x = self.fc(x)", 8) == ["        x = self.fc(x)"]
    assert layout("") == [""]
    assert layout("else:", 4) == ["    else:"]


def test_strings_have_double_quotes_unless_they_hold_one():
    assert layout("x = f('a', 'it\\'s', 'say \"b\"')") == ["""x = f("a", "it's", 'say "b"')"""]


LEAVES = ["x", "self.d", "positions", "0.5", "3", "'tanh'", "None", "self.blocks[0]"]
FORMS = [
    "({0}) + ({1})", "({0}) * ({1})", "({0}) ** ({1})", "({0}) @ ({1})", "-({0})", "not ({0})", "({0}) < ({1})",
    "({0}) and ({1})", "({0}) or ({1})", "({0}) if ({1}) else ({2})", "f({0}, {1}, k={2})", "torch.cat([{0}, {1}], {2})",
    "({0}).view({1}, -1).sum()", "({0})[:, ({1}) : ({2})]", "({0})[:, ({1}, {2})]", "({0})[{1}]", "[{0} for z in ({1})]",
    "({0}, {1})", "({0},)", "dict(a={0}, b={1})", "{{'a': {0}, 'b': {1}}}", "(z for z in ({0}))",
]  # fmt: skip


def random_expression(random, depth):
    if depth == 0 or random.random() < 0.2:
        return random.choice(LEAVES)
    return random.choice(FORMS).format(*(random_expression(random, depth - 1) for _ in range(3)))


def test_random_line_means_what_it_meant():
    random = Random(0)
    for _ in range(600):
        line = f"x = {ast.unparse(ast.parse(random_expression(random, 4), mode='eval'))}"
        for width in (10**6, 100, 40):
            assert parsed(layout(line, 8, width)) == parsed([f"        {line}"]), line
