"""The safe subset of Python that a model file may contain.

`=` expressions, `forward` and a task's loss are parsed by Python's own `ast`, checked node by node against an
allow-list, and then either evaluated here (numbers) or rendered into the generated source (tensors). Text is never
handed to `eval`. Names resolve to locals, then arguments, layers, parameters and buffers, then the functions below;
an underscore name is never reachable.
"""

# ruff: noqa: SIM905 (words in a block of text read better than a list of a hundred strings)

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from builder.errors import did_you_mean

MAX_TEXT = 20_000  # characters of one expression or forward
MAX_DEPTH = 100  # nesting of one expression
MAX_BITS = 256  # of an integer that an expression may give
MAX_ITEMS = 10_000  # of a list, string or range that an expression may give, those of inner lists included
MAX_STEPS = 100_000  # of the evaluation of one expression

MATH = frozenset("ceil cos erf exp floor isqrt log log10 log2 pi prod sin sqrt tan tanh".split())
BUILTINS = frozenset("abs bool dict enumerate float int len list max min range round sum tuple zip".split())

TORCH = frozenset(
    """
    abs acos amax amin any all arange argmax argmin argsort asin atan atan2 baddbmm bernoulli bmm broadcast_to cat cdist
    ceil chunk clamp concat conj cos cosh count_nonzero cross cumprod cumsum diag diag_embed diagonal diff dot einsum
    empty_like eq erf exp expm1 eye flatten flip floor full full_like gather ge gt hypot index_select isfinite isnan
    kron le lerp lgamma linspace log log1p log2 logaddexp logical_and logical_not logical_or logsumexp lt masked_select
    matmul maximum mean median meshgrid minimum mm movedim multinomial mul mv narrow ne nonzero norm ones ones_like
    outer permute polar pow prod rand rand_like randint randn randn_like real imag reciprocal relu repeat_interleave
    reshape roll round rsqrt scatter select sigmoid sign sin sinh softmax log_softmax sort split sqrt square squeeze
    stack std sub sum swapaxes t take tan tanh tensordot tile topk transpose tril triu unbind unflatten unsqueeze var
    view_as_complex view_as_real vstack hstack where zeros zeros_like
    """.split()
)
FUNCTIONAL = frozenset(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d avg_pool1d avg_pool2d batch_norm bilinear
    binary_cross_entropy binary_cross_entropy_with_logits celu conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    cosine_embedding_loss cosine_similarity cross_entropy dropout elu embedding embedding_bag fold gaussian_nll_loss
    gelu glu group_norm gumbel_softmax hardsigmoid hardswish hardtanh hinge_embedding_loss huber_loss instance_norm
    interpolate kl_div l1_loss layer_norm leaky_relu linear logsigmoid margin_ranking_loss max_pool1d max_pool2d mish
    mse_loss multi_margin_loss nll_loss normalize one_hot pad pairwise_distance pixel_shuffle poisson_nll_loss prelu
    relu6 rms_norm scaled_dot_product_attention selu silu smooth_l1_loss soft_margin_loss softmin softplus softsign
    tanhshrink triplet_margin_loss unfold
    """.split()
)
RANDOM = frozenset("bernoulli multinomial rand rand_like randint randn randn_like dropout gumbel_softmax".split())
DTYPES = frozenset("float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 complex64 complex128".split())
METHODS = frozenset(
    """
    abs add all amax amin any argmax argmin argsort bernoulli bfloat16 bmm bool ceil chunk clamp clone contiguous cos
    count_nonzero cumprod cumsum detach diagonal diff dim div dot double eq exp expand expand_as flatten
    flip float floor gather ge gt half index_add index_copy index_fill index_select int isfinite isnan le lerp log
    log1p log2 log_softmax logical_and logical_not logical_or logsumexp long lt masked_fill masked_scatter
    masked_select matmul max mean median min mm movedim mul mv narrow ne neg norm nonzero numel outer permute pow prod
    reciprocal relu repeat repeat_interleave reshape roll round rsqrt scatter scatter_add select sigmoid sign sin size
    softmax sort split sqrt square squeeze std sub sum swapaxes t tan tanh tile to topk transpose tril triu type_as
    unbind unflatten unfold unsqueeze var view view_as
    """.split()
)
ATTRIBUTES = frozenset("shape dtype device ndim T mT real imag".split())
LAYER_ATTRIBUTES = frozenset(  # of the layers of torch.nn: parameters, buffers and sizes, and no method
    """
    bias bias_hh bias_ih bias_k bias_v embedding_dim embed_dim eps head_dim hidden_size in_channels in_features
    in_proj_bias in_proj_weight input_size k_proj_weight normalized_shape num_embeddings num_features num_heads
    num_layers out_channels out_features out_proj padding_idx q_proj_weight running_mean running_var v_proj_weight
    weight weight_hh weight_ih
    """.split()
)

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_OPERATORS = (ast.operator, ast.unaryop, ast.cmpop, ast.boolop)
_EXPRESSIONS = (
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.Call,
    ast.keyword,
    ast.Subscript,
    ast.Slice,
    ast.Attribute,
    ast.Name,
    ast.Constant,
    ast.Tuple,
    ast.List,
    ast.Dict,
    ast.ListComp,
    ast.comprehension,
    ast.IfExp,
)
_STATEMENTS = (ast.Assign, ast.AugAssign, ast.For, ast.If, ast.Return)


RESERVED = frozenset({"self", "super", "torch", "nn", "F", "math", "range", "enumerate"})  # what generated source reads


class LanguageError(Exception):
    """A piece of text that the language refuses; carries the line within the text (from 1) and a remedy."""

    def __init__(self, what: str, line: int = 1, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.line, self.hint = what, line, hint


@dataclass(frozen=True)
class Scope:
    """What the names in a piece of text stand for.

    Attributes:
        arguments: Plain values (numbers, strings, lists), as the generated code spells them.
        tensors: Inputs and other values that are tensors, or functions given by the caller (`model`).
        members: Layers, parameters and buffers, as the generated code spells them (`self.wte`).
        buffers: The members that may be assigned to.
        parts: Names that may be read from a member (`h[0].attn`): the layers and buffers of the file's blocks.
    """

    arguments: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    members: Mapping[str, str] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()

    def names(self) -> set[str]:
        """All names that text in this scope may read, the functions left out."""
        return {*self.arguments, *self.tensors, *self.members}


def is_expression(value: object) -> bool:
    """Whether a YAML value is an `=` expression."""
    return isinstance(value, str) and value.startswith("=")


def parse_expression(text: str) -> ast.expr:
    """The checked tree of one expression, given with or without its `=`.

    Raises:
        LanguageError: The text is not in the language.
    """
    tree = _parse(text.removeprefix("=").strip(), "eval")
    assert isinstance(tree, ast.Expression)
    _check(tree.body, statements=False)
    return tree.body


def parse_statements(text: str) -> list[ast.stmt]:
    """The checked statements of a `forward`; a lone expression stands for its `return`.

    Raises:
        LanguageError: The text is not in the language, or returns nothing.
    """
    tree = _parse(text, "exec")
    assert isinstance(tree, ast.Module)
    body: list[ast.stmt] = list(tree.body)
    if len(body) == 1 and isinstance(body[0], ast.Expr):
        body = [ast.copy_location(ast.Return(body[0].value), body[0])]
    for statement in body:
        _check(statement, statements=True)
    if not body or not any(isinstance(node, ast.Return) for statement in body for node in ast.walk(statement)):
        raise LanguageError("returns nothing", hint="end with `return ...`")
    return body


def _parse(text: str, mode: str) -> ast.AST:
    if len(text) > MAX_TEXT:
        raise LanguageError(f"text of {len(text)} characters; the limit is {MAX_TEXT}")
    try:
        return ast.parse(text, mode=mode)
    except SyntaxError as err:
        cut = text.count("(") > text.count(")") or text.count("[") > text.count("]")
        hint = "inside {...} YAML ends a value at a comma or bracket: put the expression in quotes" if cut else ""
        raise LanguageError(f"{text.splitlines()[0] if text else text!r}: {err.msg}", err.lineno or 1, hint) from err
    except (ValueError, RecursionError, MemoryError) as err:
        raise LanguageError(f"cannot be parsed ({type(err).__name__})", hint="nest less deeply") from err


def _check(root: ast.AST, *, statements: bool) -> None:
    stack: list[tuple[ast.AST, int]] = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        _check_node(node, depth, statements=statements)
        stack.extend((child, depth + 1) for child in ast.iter_child_nodes(node))


def _check_node(node: ast.AST, depth: int, *, statements: bool) -> None:
    line = getattr(node, "lineno", 1)
    if depth > MAX_DEPTH:
        raise LanguageError(f"nested more than {MAX_DEPTH} deep", line)
    allowed = _EXPRESSIONS + (_STATEMENTS if statements else ())
    if isinstance(node, (ast.expr_context, *_OPERATORS)):
        return
    if not isinstance(node, allowed):
        raise LanguageError(
            f"{_describe(node)} is not part of the language",
            line,
            "allowed: assignment, arithmetic, comparison, calls, indexing, for, if, comprehensions, return",
        )
    if isinstance(node, ast.Name) and node.id.startswith("_"):
        raise LanguageError(f"name {node.id!r}: underscore names are not reachable", line)
    if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
        raise LanguageError(f"attribute {node.attr!r}: underscore names are not reachable", line)
    if isinstance(node, ast.keyword) and (node.arg is None or node.arg.startswith("_")):
        raise LanguageError("`**` and underscore keywords are not part of the language", line)
    if isinstance(node, ast.Constant) and not isinstance(node.value, bool | int | float | str | None | type(...)):
        raise LanguageError(f"constant {node.value!r} is not part of the language", line)
    if isinstance(node, ast.Dict) and None in node.keys:
        raise LanguageError("`**` is not part of the language", line)
    if isinstance(node, ast.comprehension) and node.is_async:
        raise LanguageError("`async` is not part of the language", line)
    if isinstance(node, ast.For) and node.orelse:
        raise LanguageError("`else` of a for", line, "write what follows the loop after it")
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
        raise LanguageError("assignment to an index", line, "use where(...), masked_fill or a buffer")
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        raise LanguageError(f"assignment to attribute {node.attr!r}", line, "assign to a name, or to a declared buffer")


def _describe(node: ast.AST) -> str:
    words = {
        "Lambda": "lambda",
        "NamedExpr": "`:=`",
        "JoinedStr": "an f-string",
        "Starred": "`*`",
        "Expr": "a bare expression",
    }
    kind = type(node).__name__
    return words.get(kind, f"`{kind}`")


# ---- names ------------------------------------------------------------------------------------------------------


def names_read(node: ast.AST) -> set[str]:
    """The names that an expression or statement reads."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def targets(statement: ast.AST) -> Iterator[str]:
    """The names that a statement or comprehension binds."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


# ---- evaluation of `=` expressions over plain values ---------------------------------------------------------------


def evaluate(expression: ast.expr | str, values: Mapping[str, Any]) -> Any:
    """The value of an expression over plain values.

    Numbers are bounded to `MAX_BITS` bits and lists to `MAX_ITEMS` items, so that no expression costs memory.

    >>> evaluate("=2 * d if wide else d", {"d": 64, "wide": True})
    128

    Raises:
        LanguageError: An unknown name, a result out of bounds, or an error of arithmetic.
    """
    tree = parse_expression(expression) if isinstance(expression, str) else expression
    try:
        return _Evaluation().value(tree, values)
    except (ArithmeticError, TypeError, ValueError, IndexError, KeyError) as err:
        raise LanguageError(f"{ast.unparse(tree)}: {err}") from err


class _Evaluation:
    """One evaluation, and the steps that it has taken; a loop cannot take more than `MAX_STEPS`."""

    def __init__(self) -> None:
        self.steps = 0

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise LanguageError(f"takes more than {MAX_STEPS} steps", hint="compute less")

    def value(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        self.spend(1)
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return _value_of(node, values)
            case ast.BinOp():
                result = _binary(type(node.op), self.value(node.left, values), self.value(node.right, values))
                self.spend(_weight(result))
                return result
            case ast.UnaryOp():
                if type(node.op) not in _UNARY:
                    raise LanguageError("operator `~` is for tensors")
                return _UNARY[type(node.op)](self.value(node.operand, values))
            case ast.BoolOp():
                stop = isinstance(node.op, ast.Or)
                result = None
                for part in node.values:
                    result = self.value(part, values)
                    if bool(result) == stop:
                        break
                return result
            case ast.Compare():
                left = self.value(node.left, values)
                for op, right_node in zip(node.ops, node.comparators, strict=True):
                    right = self.value(right_node, values)
                    if not _COMPARE[type(op)](left, right):
                        return False
                    left = right
                return True
            case ast.IfExp():
                return self.value(node.body if self.value(node.test, values) else node.orelse, values)
            case ast.Tuple() | ast.List():
                return [self.value(item, values) for item in node.elts]
            case ast.Subscript():
                return self.value(node.value, values)[self.index(node.slice, values)]
            case ast.ListComp():
                return _bounded(self.comprehend(node.elt, node.generators, values))
            case ast.Call():
                return self.call(node, values)
        raise LanguageError(f"{ast.unparse(node)}: only numbers, lists and arguments may stand here")

    def index(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        if isinstance(node, ast.Slice):
            parts = (node.lower, node.upper, node.step)
            return slice(*(None if part is None else self.value(part, values) for part in parts))
        return self.value(node, values)

    def comprehend(
        self, element: ast.expr, generators: list[ast.comprehension], values: Mapping[str, Any]
    ) -> list[Any]:
        first, rest = generators[0], generators[1:]
        found: list[Any] = []
        for item in self.value(first.iter, values):
            inner = {**values, **_bind(first.target, item)}
            if all(self.value(test, inner) for test in first.ifs):
                found.extend(self.comprehend(element, rest, inner) if rest else [self.value(element, inner)])
        return found

    def call(self, node: ast.Call, values: Mapping[str, Any]) -> Any:
        name = _function_name(node.func)
        if name not in MATH | BUILTINS or name == "pi":
            raise LanguageError(f"unknown function {name!r}", hint=did_you_mean(name, MATH | BUILTINS))
        if node.keywords:
            raise LanguageError(f"{name}: keywords are not allowed here")
        arguments = [self.value(argument, values) for argument in node.args]
        self.spend(sum(map(_weight, arguments)))
        if name == "range":
            if len(range(*arguments)) > MAX_ITEMS:
                raise LanguageError(f"range of more than {MAX_ITEMS} items")
            self.spend(len(range(*arguments)))
            return list(range(*arguments))
        if name in ("zip", "enumerate"):
            return _bounded([list(item) for item in {"zip": zip, "enumerate": enumerate}[name](*arguments)])
        return _bounded(_FUNCTIONS[name](*arguments))


def _value_of(node: ast.Name, values: Mapping[str, Any]) -> Any:
    if node.id in values:
        return values[node.id]
    if node.id == "pi":
        return math.pi
    raise LanguageError(f"unknown name {node.id!r}", hint=did_you_mean(node.id, {*values, *MATH, *BUILTINS}))


def _binary(op: type[ast.operator], left: Any, right: Any) -> Any:
    if op not in _BINARY:
        raise LanguageError(f"operator {op.__name__} is for tensors")
    if op is ast.Pow and isinstance(left, int) and isinstance(right, int) and abs(right) * left.bit_length() > MAX_BITS:
        raise LanguageError(f"{left} ** {right} has more than {MAX_BITS} bits")
    if op is ast.Mult and any(isinstance(side, str | list) for side in (left, right)):
        size = next(len(side) for side in (left, right) if isinstance(side, str | list))
        times = right if isinstance(right, int) else left
        if isinstance(times, int) and size * times > MAX_ITEMS:
            raise LanguageError(f"more than {MAX_ITEMS} items")
    if op is ast.Mod and isinstance(left, str):
        raise LanguageError("% formats no text here")
    return _bounded(_BINARY[op](left, right))


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise LanguageError(f"a number of more than {MAX_BITS} bits")
    if _weight(value) > MAX_ITEMS:
        raise LanguageError(f"more than {MAX_ITEMS} items")
    return value


def _weight(value: Any) -> int:
    """The items of a value, those of inner lists included; counting stops above `MAX_ITEMS`."""
    if not isinstance(value, list):
        return len(value) if isinstance(value, str) else 1
    count = len(value)
    for item in value:
        if count > MAX_ITEMS:
            break
        count += _weight(item) if isinstance(item, str | list) else 0
    return count


def _round(value: Any, digits: int = 0) -> Any:
    if abs(digits) > MAX_BITS:  # an int to a negative digit costs memory for each
        raise LanguageError(f"round to {digits} digits", hint=f"at most {MAX_BITS}")
    return round(value, digits) if digits else round(value)


def _bind(target: ast.expr, item: Any) -> dict[str, Any]:
    if isinstance(target, ast.Name):
        return {target.id: item}
    assert isinstance(target, ast.Tuple | ast.List)
    return {k: v for part, value in zip(target.elts, item, strict=True) for k, v in _bind(part, value).items()}


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(math, name) for name in MATH - {"pi"}},
    "abs": abs, "bool": bool, "float": float, "int": int, "len": len, "list": list, "max": max, "min": min,
    "round": _round, "sum": sum, "tuple": list, "dict": dict,
}  # fmt: skip


def _function_name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "math":
        return node.attr
    return ast.unparse(node)


# ---- rendering into generated source ------------------------------------------------------------------------------


class Renderer(ast.NodeTransformer):
    """Rewrites checked trees so that every name is spelt as the generated module spells it.

    A function that exists in both `math` and `torch` (`sqrt`) is `math`'s where it is given plain numbers only
    (arguments, shapes and what is computed from them), and `torch`'s otherwise.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.locals: set[str] = set()
        self.plain: set[str] = set(scope.arguments)

    def expression(self, tree: ast.expr) -> str:
        """The source text of an expression."""
        return ast.unparse(ast.fix_missing_locations(self.visit(tree)))

    def statements(self, body: Iterable[ast.stmt], indent: int = 0) -> Iterator[tuple[int, str]]:
        """The source lines of statements, each with the line of the text that it came from."""
        pad = "    " * indent
        for statement in body:
            line = statement.lineno
            match statement:
                case ast.Assign() | ast.AugAssign():
                    yield line, pad + self._assignment(statement)
                case ast.Return():
                    if statement.value is None:
                        raise LanguageError("returns nothing", line, "return a tensor, a tuple or a dict")
                    yield line, f"{pad}return {self.expression(statement.value)}"
                case ast.For():
                    source = self.expression(statement.iter)
                    self._bind(statement.target, plain=self._iterates_numbers(statement.iter))
                    yield line, f"{pad}for {ast.unparse(statement.target)} in {source}:"
                    yield from self.statements(statement.body, indent + 1)
                case ast.If():
                    if not self._is_plain(statement.test):
                        raise LanguageError(
                            "`if` on a tensor", line, "use where(condition, a, b); `if` is for `training` and arguments"
                        )
                    yield line, f"{pad}if {self.expression(statement.test)}:"
                    yield from self.statements(statement.body, indent + 1)
                    if statement.orelse:
                        yield line, f"{pad}else:"
                        yield from self.statements(statement.orelse, indent + 1)

    def _assignment(self, statement: ast.Assign | ast.AugAssign) -> str:
        if isinstance(statement, ast.AugAssign):
            assert isinstance(statement.target, ast.Name)
            read = ast.copy_location(ast.Name(statement.target.id, ast.Load()), statement.target)
            right: ast.expr = ast.BinOp(read, statement.op, statement.value)
            left: ast.expr = statement.target
        else:
            if len(statement.targets) > 1:
                raise LanguageError("`a = b = ...`", statement.lineno, "use two assignments")
            left, right = statement.targets[0], statement.value
        right = ast.copy_location(right, statement)
        plain = self._is_plain(right)
        value = self.expression(right)
        if isinstance(left, ast.Name) and left.id in self.scope.buffers:
            return f"{self.scope.members[left.id]}.copy_({value})"
        self._bind(left, plain=plain)
        return f"{ast.unparse(left)} = {value}"

    def _bind(self, target: ast.expr, *, plain: bool) -> None:
        for name in targets(target):
            if name in RESERVED:
                raise LanguageError(
                    f"{name!r} has a meaning in the generated source", target.lineno, "use another name"
                )
            if name in self.scope.members or name in self.scope.arguments:
                raise LanguageError(f"{name!r} names a layer, parameter or argument", target.lineno, "use another name")
            self.locals.add(name)
            (self.plain.add if plain else self.plain.discard)(name)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """A name, in the order locals, arguments, inputs, members, constants, dtypes."""
        name = node.id
        if isinstance(node.ctx, ast.Store) or name in self.locals:
            return node
        scope = self.scope
        for spelt in (scope.arguments, scope.tensors, scope.members):
            if name in spelt:
                return ast.parse(spelt[name], mode="eval").body
        if name in DTYPES:
            return ast.parse(f"torch.{name}", mode="eval").body
        if name in ("pi", "inf"):
            return ast.parse(f"math.{name}", mode="eval").body
        if name in BUILTINS:
            return node
        if name in TORCH | FUNCTIONAL | MATH:
            raise LanguageError(f"function {name!r} is not called", node.lineno, f"write {name}(...)")
        raise self._unknown(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Arithmetic; what is made of constants alone is bounded as in an `=` expression."""
        if isinstance(node.op, ast.Pow | ast.Mult) and not names_read(node):
            evaluate(node, {})
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A call of a function of the allow-list, of a layer, or of a tensor method."""
        function = node.func
        if isinstance(function, ast.Name) and not self._is_bound(function.id):
            _check_dropout(function.id, node)
            node.func = self._function(function, plain=all(map(self._is_plain, node.args)) and bool(node.args))
        elif isinstance(function, ast.Attribute):
            node.func = self._method(function)
        else:
            node.func = self.visit(function)
        node.args = [self.visit(argument) for argument in node.args]
        node.keywords = [ast.keyword(keyword.arg, self.visit(keyword.value)) for keyword in node.keywords]
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """`.shape` and the like of a tensor, or a parameter of a layer (`wte.weight`)."""
        if isinstance(node.value, ast.Name) and node.value.id == "math" and node.attr in MATH | {"inf"}:
            return ast.parse(f"math.{node.attr}", mode="eval").body
        if node.attr not in ATTRIBUTES and not self._is_part(node):
            raise LanguageError(
                f"attribute {node.attr!r} is not part of the language", node.lineno, did_you_mean(node.attr, ATTRIBUTES)
            )
        node.value = self.visit(node.value)
        return node

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        """A comprehension; its names are locals within it."""
        for generator in node.generators:
            generator.iter = self.visit(generator.iter)
            self._bind(generator.target, plain=self._iterates_numbers(generator.iter))
            generator.ifs = [self.visit(test) for test in generator.ifs]
        node.elt = self.visit(node.elt)
        return node

    def _function(self, function: ast.Name, *, plain: bool) -> ast.expr:
        name = function.id
        if name in BUILTINS and (plain or name not in TORCH):
            return function
        for module, known in (
            ("math", MATH if plain else frozenset()),
            ("torch", TORCH),
            ("F", FUNCTIONAL),
            ("math", MATH),
        ):
            if name in known:
                return ast.parse(f"{module}.{name}", mode="eval").body
        if name in BUILTINS:
            return function
        raise self._unknown(function)

    def _method(self, function: ast.Attribute) -> ast.expr:
        if (
            isinstance(function.value, ast.Name)
            and function.value.id in ("math", "linalg")
            and not self._is_bound(function.value.id)
        ):
            if function.value.id == "math" and function.attr in MATH:
                return function
            if function.value.id == "linalg" and function.attr in (
                "norm",
                "vector_norm",
                "matrix_norm",
                "inv",
                "solve",
                "det",
            ):
                return ast.parse(f"torch.linalg.{function.attr}", mode="eval").body
        if function.attr not in METHODS and not self._is_part(function):
            raise LanguageError(
                f"method {function.attr!r} is not part of the language",
                function.lineno,
                did_you_mean(function.attr, METHODS),
            )
        function.value = self.visit(function.value)
        return function

    def _is_bound(self, name: str) -> bool:
        return name in self.locals or name in self.scope.names()

    def _is_part(self, attribute: ast.Attribute) -> bool:
        """Whether an attribute is a part of a layer, rather than a method that could change the model or leave it."""
        node: ast.expr = attribute
        while isinstance(node, ast.Attribute | ast.Subscript):
            if isinstance(node, ast.Attribute) and node.attr not in LAYER_ATTRIBUTES | self.scope.parts:
                return False
            node = node.value
        return isinstance(node, ast.Name) and node.id in self.scope.members and node.id not in self.scope.buffers

    def _is_plain(self, node: ast.expr) -> bool:
        """Whether an expression is made of plain numbers alone."""
        if isinstance(node, ast.Attribute):
            return node.attr in ("shape", "ndim") or (isinstance(node.value, ast.Name) and node.value.id == "math")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            return node.func.attr in ("size", "dim", "numel")
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            return name in MATH | BUILTINS and not self._is_bound(name) and all(map(self._is_plain, node.args))
        if isinstance(node, ast.Name):
            return node.id in self.plain or node.id in ("pi", "inf", "training")
        if isinstance(node, ast.Constant):
            return True
        if isinstance(node, ast.Compare) and all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            return True
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        return all(map(self._is_plain, children))

    def _iterates_numbers(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"

    def _unknown(self, node: ast.Name) -> LanguageError:
        near = {*self.scope.names(), *self.locals, *TORCH, *FUNCTIONAL, *MATH, *BUILTINS}
        return LanguageError(f"unknown name {node.id!r}", node.lineno, did_you_mean(node.id, near, most=6))


def _check_dropout(name: str, call: ast.Call) -> None:
    """Refuses `dropout(x, p)`, which in torch drops in eval mode as well."""
    if name == "dropout" and len(call.args) < 3 and not any(keyword.arg == "training" for keyword in call.keywords):
        raise LanguageError(
            "dropout without `training` drops in eval mode too", call.lineno, "write dropout(x, 0.1, training)"
        )
