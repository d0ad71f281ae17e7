"""The safe subset of Python that a model file may contain: what may be written, and the parser.

`=` expressions, `forward` and a task's loss are parsed by Python's own `ast` and checked node by node against an
allow-list; an underscore name is never reachable. `evaluate` computes what is made of numbers, `rendering` spells
what is made of tensors in the generated source. Text is never handed to `eval`.
"""

# ruff: noqa: SIM905 (words in a block of text read better than a list of a hundred strings)

from __future__ import annotations

import ast
from collections.abc import Iterator

MAX_TEXT = 20_000  # characters of one expression or forward
MAX_DEPTH = 100  # nesting of one expression

MATH = frozenset("ceil cos erf exp floor isqrt log log10 log2 pi prod sin sqrt tan tanh".split())
BUILTINS = frozenset("abs bool dict enumerate float int len list max min range round sum tuple zip".split())

TORCH = frozenset(
    """
    abs acos amax amin any all arange argmax argmin argsort asin atan atan2 baddbmm bernoulli bmm broadcast_to cat cdist
    ceil chunk clamp concat conj cos cosh count_nonzero cross cumprod cumsum diag diag_embed diagonal diff dot einsum
    eq erf exp expm1 eye flatten flip floor full full_like gather ge gt hypot index_select isfinite isnan
    kron le lerp lgamma linspace log log1p log2 logaddexp logical_and logical_not logical_or logsumexp lt masked_select
    matmul maximum mean median meshgrid minimum mm movedim multinomial mul mv narrow ne nonzero norm ones ones_like
    outer permute polar pow prod rand rand_like randint randn randn_like real imag reciprocal relu repeat_interleave
    reshape roll round rsqrt scatter select sigmoid sign sin sinh softmax log_softmax sort split sqrt square squeeze
    stack std sub sum swapaxes t take tan tanh tensordot tile topk transpose tril tril_indices triu triu_indices unbind
    unflatten unsqueeze var view_as_complex view_as_real vstack hstack where zeros zeros_like
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
        hint = "inside {...} YAML ends a value at a comma or bracket: put the expression in quotes"
        hint = hint if cut and mode == "eval" else "it is written as in Python: mend the line"
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


def names_read(node: ast.AST) -> set[str]:
    """The names that an expression or statement reads."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def targets(statement: ast.AST) -> Iterator[str]:
    """The names that a statement or comprehension binds."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
