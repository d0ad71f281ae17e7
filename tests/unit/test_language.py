"""The expression language: what it computes, and what it refuses at once."""

import time

import pytest

from builder.errors import BuilderError
from builder.evaluate import evaluate
from builder.language import (
    FUNCTIONAL,
    MATH,
    METHODS,
    TORCH,
    LanguageError,
    parse_expression,
    parse_statements,
)
from builder.load import load
from builder.rendering import Renderer, Scope


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("=4*d", 256, id="arithmetic over an argument"),
        pytest.param("d // 3 + d % 3 - -1", 23, id="floor division, remainder and sign"),
        pytest.param("=2 * d if wide else d", 128, id="a conditional"),
        pytest.param("=dims[-1]", 3, id="an index from the end"),
        pytest.param("=dims[1:]", [2, 3], id="a slice"),
        pytest.param("=[2 * x for x in dims if x > 1]", [4, 6], id="a comprehension with a condition"),
        pytest.param("=[a + b for a in dims for b in dims if a == b]", [2, 4, 6], id="two loops"),
        pytest.param("=[a * b for a, b in zip(dims, dims[1:])]", [2, 6], id="unpacking"),
        pytest.param("=sum(dims) + len(dims) + max(dims)", 12, id="built-in functions"),
        pytest.param("=math.sqrt(d) + floor(pi)", 11.0, id="math"),
        pytest.param("=wide and d > 3 > 2", True, id="boolean operators and a chain"),
        pytest.param("=range(2, 8, 3)", [2, 5], id="range is a list"),
        pytest.param("=round(2.567, 1)", 2.6, id="rounding"),
        pytest.param("=2 in dims", True, id="membership"),
        pytest.param("=wide or missing", True, id="or stops at the first that holds"),
    ],
)
def test_expression_has_the_value_that_python_gives(text, value):
    assert evaluate(text, {"d": 64, "wide": True, "dims": [1, 2, 3]}) == value


HOSTILE = [
    pytest.param("x.__class__", "underscore", id="a dunder attribute"),
    pytest.param("__import__('os')", "underscore", id="a dunder name"),
    pytest.param("_x", "underscore", id="a private name"),
    pytest.param("x.to(_y=1)", "underscore", id="a private keyword"),
    pytest.param("f(**x)", "`\\*\\*`", id="keywords from a mapping"),
    pytest.param("{**x}", "`\\*\\*`", id="a mapping spread"),
    pytest.param("f(*x)", "`\\*`", id="arguments from a list"),
    pytest.param("lambda: 1", "lambda", id="lambda"),
    pytest.param("(y := 1)", ":=", id="assignment within an expression"),
    pytest.param("f'{x}'", "f-string", id="an f-string"),
    pytest.param("b'x'", "constant", id="bytes"),
    pytest.param("1j", "constant", id="an imaginary number"),
    pytest.param("{1, 2}", "`Set`", id="a set"),
    pytest.param("{a: 1 for a in x}", "`DictComp`", id="a dict comprehension"),
    pytest.param("(a for a in x)", "`GeneratorExp`", id="a generator"),
    pytest.param("[a async for a in x]", "async", id="an async comprehension"),
    pytest.param("await x", ".", id="await"),
    pytest.param("import os", ".", id="import"),
    pytest.param("getattr(x, 'shape')", "unknown function 'getattr'", id="getattr"),
    pytest.param("open('/etc/passwd')", "unknown function 'open'", id="open"),
    pytest.param("eval('1')", "unknown function 'eval'", id="eval"),
    pytest.param("x.system('ls')", "unknown function", id="a method of a value"),
    pytest.param("'{0.x}'.format(1)", "unknown function", id="text formatting by method"),
    pytest.param("'%99999999d' % 1", "% formats", id="text formatting by operator"),
    pytest.param("10**10**10", "bits", id="a tower of powers"),
    pytest.param("2**200 * 2**200", "bits", id="a product of large powers"),
    pytest.param("10.0**10**3", ".", id="a power beyond floats"),
    pytest.param("range(10**12)", "range of more than", id="a huge range"),
    pytest.param("range(10**30)", ".", id="a range beyond an index"),
    pytest.param("'a'*10**9", "items", id="a huge text"),
    pytest.param("10**9*[0]", "items", id="a huge list"),
    pytest.param("[[0]*9999]*9999", "items", id="a list of large lists"),
    pytest.param("sum([[0]*100 for a in range(10000)], [])", "items|steps", id="a sum of lists"),
    pytest.param("[a for a in range(10000) for b in range(10000) if False]", "steps", id="an empty double loop"),
    pytest.param("[len(range(9999)) for a in range(9999)]", "steps", id="a loop of dropped lists"),
    pytest.param("round(5, -10**9)", "round", id="rounding to a huge digit"),
    pytest.param("(" * 5000 + "1" + ")" * 5000, ".", id="parentheses too deep"),
    pytest.param("-" * 5000 + "1", ".", id="signs too deep"),
    pytest.param("+".join(["1"] * 500), "deep", id="a sum too deep"),
    pytest.param("1" * 30000, "characters", id="a text too long"),
    pytest.param("\0", ".", id="a null byte"),
    pytest.param("", ".", id="nothing"),
]


@pytest.mark.parametrize(("text", "cause"), HOSTILE)
def test_hostile_expression_is_refused_within_a_second(text, cause):
    start = time.perf_counter()
    with pytest.raises(LanguageError, match=cause):
        evaluate(text, {"x": [1], "y": 2})
    assert time.perf_counter() - start < 1


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        pytest.param(BOMB, "more than 20000 nodes, aliases included", id="an alias bomb"),
        pytest.param("a: &a {b: *a}", ".", id="an alias of itself"),
        pytest.param("[" * 500 + "]" * 500, "nested", id="lists too deep"),
        pytest.param("args: {a: '${oc.env:HOME}'}", "a resolver is not allowed", id="a resolver"),
        pytest.param('args: {a: "$\\x7boc.env:HOME}"}', "a resolver is not allowed", id="a resolver spelt by escapes"),
        pytest.param("args: {a: '${b.${oc.env:HOME}}'}", "a resolver is not allowed", id="a resolver within another"),
        pytest.param("a: !!python/object/apply:os.system [ls]", "could not determine a constructor", id="a Python tag"),
        pytest.param("a: 1\na: 2", "duplicate key", id="a key twice"),
    ],
)
def test_hostile_file_is_refused_within_a_second(tmp_path, text, cause):
    file = tmp_path / "model.yaml"
    file.write_text(text)
    start = time.perf_counter()
    with pytest.raises(BuilderError, match=cause):
        load(file)
    assert time.perf_counter() - start < 1


SCOPE = Scope(
    arguments={"d": "self.d", "training": "self.training"},
    tensors={"x": "x"},
    members={"fc": "self.fc", "h": "self.h", "count": "self.count"},
    buffers=frozenset({"count"}),
    layers=frozenset({"fc", "h"}),
    parts=frozenset({"attn"}),
)


def rendered(text):
    return "\n".join(line for _, line in Renderer(SCOPE).statements(parse_statements(text)))


@pytest.mark.parametrize(
    ("text", "source"),
    [
        pytest.param("gelu(fc(x))", "return F.gelu(self.fc(x))", id="a lone expression is returned"),
        pytest.param("x / sqrt(d)", "return x / math.sqrt(self.d)", id="sqrt of a number is math's"),
        pytest.param("sqrt(x)", "return torch.sqrt(x)", id="sqrt of a tensor is torch's"),
        pytest.param("x * sqrt(x.shape[-1])", "return x * math.sqrt(x.shape[-1])", id="a shape is a number"),
        pytest.param("x.to(float32)", "return x.to(torch.float32)", id="a dtype"),
        pytest.param("x @ fc.weight.T", "return x @ self.fc.weight.T", id="a layer's parameter"),
        pytest.param("h[0].attn(x)", "return self.h[0].attn(x)", id="a part of a repeated block"),
        pytest.param("a, b = x, x\nreturn a, (b, x)", "a, b = x, x\nreturn a, (b, x)", id="tuples"),
        pytest.param("x += 1\nreturn x", "x = x + 1\nreturn x", id="augmented assignment"),
        pytest.param(
            "count += x\nreturn x", "self.count.copy_((self.count + x).detach())\nreturn x", id="a buffer in place"
        ),
        pytest.param(
            "count = abs(x)\nreturn x", "self.count.copy_(torch.abs(x).detach())\nreturn x", id="a whole call"
        ),
        pytest.param("count = d\nreturn x", "self.count.fill_(self.d)\nreturn x", id="a buffer set to a number"),
        pytest.param(
            "for b in h:\n  x = b(x)\nreturn x", "for b in self.h:\n    x = b(x)\nreturn x", id="a loop over layers"
        ),
        pytest.param(
            "if training:\n  x = dropout(x, 0.5, training)\nreturn x",
            "if self.training:\n    x = F.dropout(x, 0.5, self.training)\nreturn x",
            id="if on training",
        ),
    ],
)
def test_forward_is_rendered_as_one_would_write_it(text, source):
    assert rendered(text) == source


@pytest.mark.parametrize(
    ("text", "line", "cause", "remedy"),
    [
        pytest.param("y = x\nx = gleu(y)\nreturn x", 2, "unknown name 'gleu'", "gelu", id="an unknown function"),
        pytest.param("y += 1\nreturn y", 1, "unknown name 'y'", ".", id="augmenting an unknown name"),
        pytest.param("x[0] = 1\nreturn x", 1, "assignment to an index", "where", id="assigning to an index"),
        pytest.param("x.data = 1\nreturn x", 1, "assignment to attribute", "buffer", id="assigning to an attribute"),
        pytest.param("fc = x\nreturn fc", 1, "names a layer", "another name", id="assigning to a layer"),
        pytest.param("d = 3\nreturn x", 1, "argument", "another name", id="assigning to an argument"),
        pytest.param("F = x\nreturn F", 1, "generated source", "another name", id="assigning to a module"),
        pytest.param("a = b = x\nreturn a", 1, "a = b", "two assignments", id="a chained assignment"),
        pytest.param("if x:\n  x = x\nreturn x", 1, "`if` on a tensor", "where", id="if on a tensor"),
        pytest.param(
            "for i in range(2):\n  x = x\nelse:\n  x = x\nreturn x", 1, "`else` of a for", "after", id="for else"
        ),
        pytest.param("x = x + 1", 1, "returns nothing", "return", id="no return"),
        pytest.param("x = x\nreturn", 2, "returns nothing", "return a tensor", id="an empty return"),
        pytest.param("gelu", 1, "not called", "gelu\\(", id="a function that is not called"),
        pytest.param("x.numpy()", 1, "method 'numpy'", "known", id="a method out of the allow-list"),
        pytest.param("x.grad_fn", 1, "attribute 'grad_fn'", "known", id="an attribute out of the allow-list"),
        pytest.param("fc.weight.numpy()", 1, "method 'numpy'", "known", id="a method of a parameter"),
        pytest.param("fc.compile()", 1, "method 'compile'", "known", id="a method of a module"),
        pytest.param("fc.register_forward_hook(fc)", 1, "register_forward_hook", "known", id="a hook"),
        pytest.param("fc.weight.data.zero_()", 1, "method 'zero_'", "known", id="in-place change of a parameter"),
        pytest.param("x.apply_(fc)", 1, "method 'apply_'", "known", id="a function over elements"),
        pytest.param("x * 10**10**10", 1, "bits", ".", id="a tower of powers"),
        pytest.param("while True:\n  x = x\nreturn x", 1, "`While`", "allowed", id="while"),
        pytest.param("import os\nreturn x", 1, "`Import`", "allowed", id="import"),
        pytest.param("def f(): pass\nreturn x", 1, "`FunctionDef`", "allowed", id="def"),
        pytest.param("with x: pass\nreturn x", 1, "`With`", "allowed", id="with"),
        pytest.param("global x\nreturn x", 1, "`Global`", "allowed", id="global"),
        pytest.param("del x\nreturn x", 1, "`Delete`", "allowed", id="del"),
        pytest.param("try:\n  x = x\nexcept: x = x\nreturn x", 1, "`Try`", "allowed", id="try"),
        pytest.param("print(x)\nreturn x", 1, "bare expression", "allowed", id="a call for its effect"),
        pytest.param("linalg.os(x)", 1, "os", ".", id="an attribute of a module"),
        pytest.param("relu6(x, inplace=True)", 1, "inplace= writes", "what the call returns", id="in place by name"),
        pytest.param("elu(fc.weight, 1.0, True)", 1, "may write in place", "by name", id="in place by position"),
        pytest.param("add(x, x, out=fc.weight)", 1, "out= writes", "what the call returns", id="an output argument"),
        pytest.param("embedding(x, fc.weight, max_norm=1.0)", 1, "max_norm= writes", "returns", id="rows rewritten"),
        pytest.param("fc.half()\nreturn x", 1, "bare expression", "allowed", id="a layer converted for its effect"),
        pytest.param(
            "y = fc.half()\nreturn x", 1, "change the layer itself", "convert its input", id="a layer converted"
        ),
        pytest.param(
            "y = fc\ny = y.double()\nreturn x", 2, "change the layer", "convert", id="a layer by another name"
        ),
        pytest.param(
            "for b in h:\n  b = b.to(float64)\nreturn x",
            2,
            "change the layer",
            "convert",
            id="a layer of a list converted",
        ),
        pytest.param(
            "[b.float() for b in h]", 1, "change the layer", "convert", id="layers converted in a comprehension"
        ),
        pytest.param("h[0].attn.half()", 1, "change the layer", "convert", id="a part of a layer converted"),
        pytest.param("[x for i in range(10**9)]", 1, "more than 10000", "", id="a range without end"),
        pytest.param("torch.load('x')", 1, "unknown name 'torch'", "own name", id="a module by name"),
    ],
)
def test_forward_outside_the_language_is_refused_with_line_and_remedy(text, line, cause, remedy):
    with pytest.raises(LanguageError, match=cause) as caught:
        rendered(text)
    assert caught.value.line == line
    assert remedy.replace("\\", "").removesuffix(".") in caught.value.hint


def test_expression_cut_by_yaml_says_so():
    with pytest.raises(LanguageError) as caught:
        parse_expression("=1 / (arange(0")
    assert "put the expression in quotes" in caught.value.hint


def test_every_name_of_the_allow_lists_exists_and_none_is_in_place():
    import math

    import torch
    import torch.nn.functional as F

    assert not [name for name in TORCH if not hasattr(torch, name)]
    assert not [name for name in FUNCTIONAL if not hasattr(F, name)]
    assert not [name for name in METHODS if not hasattr(torch.Tensor, name)]
    assert not [name for name in MATH if not hasattr(math, name)]
    assert not [name for name in TORCH | FUNCTIONAL | METHODS if name.endswith("_")]
