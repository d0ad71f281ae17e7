"""One line of generated source → the lines that a formatter would make of it.

The generated source reads as formatted by `ruff format` with lines of at most `WIDTH` columns: double quotes, its
spaces in slices and powers, and its way of breaking a line that is too long. Only what generated source can contain is
known here. A line is first built as text with places where it may break, after Wadler, A prettier printer (2003): a
group stands on one line if it fits, and breaks in all its own places otherwise.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WIDTH = 100

_PRECEDENCE: dict[type[ast.AST], int] = {
    ast.IfExp: 1, ast.Or: 2, ast.And: 3, ast.Not: 4, ast.Compare: 5, ast.BitOr: 6, ast.BitXor: 7, ast.BitAnd: 8,
    ast.LShift: 9, ast.RShift: 9, ast.Add: 10, ast.Sub: 10, ast.Mult: 11, ast.Div: 11, ast.FloorDiv: 11, ast.Mod: 11,
    ast.MatMult: 11, ast.USub: 12, ast.UAdd: 12, ast.Invert: 12, ast.Pow: 13,
}  # fmt: skip
_SYMBOLS: dict[type[ast.AST], str] = {
    ast.Or: "or", ast.And: "and", ast.Not: "not ", ast.BitOr: "|", ast.BitXor: "^", ast.BitAnd: "&", ast.LShift: "<<",
    ast.RShift: ">>", ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%",
    ast.MatMult: "@", ast.USub: "-", ast.UAdd: "+", ast.Invert: "~", ast.Pow: "**", ast.Eq: "==", ast.NotEq: "!=",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Is: "is", ast.IsNot: "is not", ast.In: "in",
    ast.NotIn: "not in",
}  # fmt: skip
_CHAIN = (ast.Attribute, ast.Call, ast.Subscript)
_BRACKETED = (ast.List, ast.Tuple, ast.Dict, ast.ListComp, ast.GeneratorExp)
_TERNARY, _COMPARE, _UNARY, _POWER, _ATOM = 1, 5, 12, 13, 15
_NEEDS_A_LOOK = re.compile(r"""['\[]|\*\*""")


@dataclass(frozen=True)
class _Break:
    """A place to break a line: a new line where its group breaks, and `flat` where the group fits."""

    flat: str = ""


@dataclass(frozen=True)
class _IfBroken:
    """Text that is there only where the group breaks."""

    text: str


@dataclass(frozen=True)
class _Indent:
    content: _Doc


@dataclass(frozen=True)
class _Group:
    content: _Doc


_Doc = str | _Break | _IfBroken | _Indent | _Group | list["_Doc"]
_Item = tuple[int, bool, _Doc]  # indentation, whether its group breaks, what to print


def layout(line: str, indent: int = 0, width: int = WIDTH) -> list[str]:
    """The lines of one statement, or of the head of one that has a body (`for`, `if`, `else`, `def`, `class`).

    Args:
        line: The statement on one line, without its indentation.
        indent: Columns that it stands from the margin.
        width: Columns that a line has.
    """
    if line in ("", "else:") or (indent + len(line) <= width and not _NEEDS_A_LOOK.search(line)):
        return [" " * indent + line if line else ""]
    is_head = line.endswith(":")
    statement = ast.parse(f"{line} pass" if is_head else line).body[0]
    return _shortest(list(_statement(statement)), indent, width)


def _shortest(forms: Sequence[_Doc], indent: int, width: int) -> list[str]:
    """The first form that stands within the width, or else the last."""
    lines: list[str] = []
    for form in forms:
        lines = _print(form, indent, width)
        if all(len(line) <= width for line in lines):
            break
    return lines


# ---- printing ------------------------------------------------------------------------------------------------------


def _print(doc: _Doc, indent: int, width: int) -> list[str]:
    lines = [" " * indent]
    stack: list[_Item] = [(indent, True, doc)]
    while stack:
        column, broken, item = stack.pop()
        if isinstance(item, str):
            lines[-1] += item
        elif isinstance(item, list):
            stack += [(column, broken, part) for part in reversed(item)]
        elif isinstance(item, _Indent):
            stack.append((column + 4, broken, item.content))
        elif isinstance(item, _Group):
            breaks = not _fits((column, False, item.content), stack, width - len(lines[-1]))
            stack.append((column, breaks, item.content))
        elif isinstance(item, _IfBroken):
            lines[-1] += item.text if broken else ""
        elif broken:
            lines.append(" " * column)
        else:
            lines[-1] += item.flat
    return [line.rstrip() for line in lines]


def _fits(item: _Item, rest: Sequence[_Item], room: int) -> bool:
    """Whether an item fits on the line, with what stands after it up to the next place to break."""
    ahead = iter(reversed(rest))
    stack = [item]
    while room >= 0:
        if not stack:
            following = next(ahead, None)
            if following is None:
                return True
            stack.append(following)
        column, broken, part = stack.pop()
        if isinstance(part, str):
            room -= len(part)
        elif isinstance(part, list):
            stack += [(column, broken, inner) for inner in reversed(part)]
        elif isinstance(part, _Indent | _Group):
            stack.append((column, broken, part.content))
        elif isinstance(part, _IfBroken):
            room -= len(part.text) if broken else 0
        elif broken:
            return True
        else:
            room -= len(part.flat)
    return False


# ---- statements ----------------------------------------------------------------------------------------------------


def _statement(node: ast.stmt) -> Iterator[_Doc]:
    """The forms that a statement may take, the best first."""
    match node:
        case ast.FunctionDef():
            yield [f"def {node.name}", _bracketed("(", _Group(_separated(_parameters(node.args))), ")"), ":"]
        case ast.Assign(targets=[target], value=value):
            yield from _value([_bare(target), " = "], value)
        case ast.Return(value=ast.expr() as value):
            yield from _value(["return "], value)
        case ast.Expr(value=value):
            yield from _value([], value)
        case ast.For():
            yield from _value(["for ", _bare(node.target), " in "], node.iter, ":")
        case ast.If():
            yield from _value(["if "], node.test, ":")
        case _:
            yield ast.unparse(node).removesuffix(" pass").removesuffix("\n    pass")


def _value(before: list[_Doc], value: ast.expr, after: str = "") -> Iterator[_Doc]:
    """A statement's value: broken within its own brackets where that reads well, in parentheses otherwise."""
    if isinstance(value, ast.Tuple) and len(value.elts) > 1 and not after:
        if _breaks_well(value):
            yield [*before, *_joined([_doc(item, inside=False) for item in value.elts], ", ")]
        parts = _separated([_doc(item) for item in value.elts])
        yield [*before, _Group([_IfBroken("("), _Indent([_Break(), *parts]), _Break(), _IfBroken(")")])]
        return
    if isinstance(value, _BRACKETED) or (isinstance(value, _CHAIN) and not _is_fluent(value)):
        yield [*before, _doc(value, inside=False), after]
        return
    if _breaks_well(value):
        yield [*before, _doc(value, inside=False), after]
    inner = _doc(value)
    yield [*before, _Group([_IfBroken("("), _Indent([_Break(), _Group(inner)]), _Break(), _IfBroken(")")]), after]


def _breaks_well(value: ast.expr) -> bool:
    """Whether a value may break within its own brackets: it begins or ends with one, and has one operator at most."""
    items = value.elts if isinstance(value, ast.Tuple) else [value]
    begins, ends = _ends(items[0])[0], _ends(items[-1])[1]
    return sum(map(_operators, items)) <= 1 and (begins or ends)


def _operators(value: ast.expr) -> int:
    """How many operators of the lowest precedence an expression has outside of brackets."""
    if isinstance(value, ast.IfExp):
        return 2
    if isinstance(value, _CHAIN):
        return _dots_after_brackets(value)
    if isinstance(value, ast.Compare):
        return len(value.ops)
    if isinstance(value, ast.BoolOp | ast.BinOp):
        return len(_flattened(value)[1])
    if isinstance(value, ast.UnaryOp) and _binds(value.operand) >= _binds(value):
        return _operators(value.operand)
    return 0


def _ends(value: ast.expr) -> tuple[bool, bool]:
    """Whether an expression begins, and whether it ends, with brackets that hold something."""
    first: ast.expr | None = value
    while isinstance(first, _CHAIN) or (first is not None and _operands(first)):
        first = _links(first)[-1] if isinstance(first, _CHAIN) else _side(first, 0)
    last: ast.expr | None = value
    while last is not None and _operands(last):
        last = _side(last, -1)
    return first is None or _has_contents(first), last is None or _has_contents(last)


def _operands(node: ast.expr) -> list[tuple[ast.expr | None, int]]:
    """The outer operands of an operation, each with the precedence below which it stands in parentheses."""
    own = _binds(node)
    match node:
        case ast.BinOp(op=ast.Pow()):
            return [(node.left, _POWER + 1), (node.right, _UNARY)]
        case ast.BinOp():
            return [(node.left, own), (node.right, own + 1)]
        case ast.BoolOp():
            return [(node.values[0], own + 1), (node.values[-1], own + 1)]
        case ast.Compare():
            return [(node.left, own + 1), (node.comparators[-1], own + 1)]
        case ast.UnaryOp():
            return [(ast.Name(""), own), (node.operand, own)]
    return []


def _side(node: ast.expr, index: int) -> ast.expr | None:
    """The first or last operand; None where it stands in parentheses."""
    operand, at_least = _operands(node)[index]
    return None if operand is None or _binds(operand) < at_least else operand


def _has_contents(node: ast.expr) -> bool:
    match node:
        case ast.Call():
            return bool(node.args or node.keywords)
        case ast.List() | ast.Tuple():
            return bool(node.elts)
        case ast.Dict():
            return bool(node.keys)
    return isinstance(node, ast.ListComp)


# ---- expressions ---------------------------------------------------------------------------------------------------


def _bare(node: ast.expr) -> _Doc:
    """An expression, a tuple without its parentheses."""
    if isinstance(node, ast.Tuple) and len(node.elts) > 1:
        return _joined([_doc(item) for item in node.elts], ", ")
    return _doc(node)


def _doc(node: ast.expr, at_least: int = 0, *, inside: bool = True) -> _Doc:
    """An expression, in parentheses where it binds less than `at_least`; operators break only inside of brackets."""
    if _binds(node) < at_least:
        return _bracketed("(", _doc(node), ")")
    match node:
        case ast.BinOp() | ast.BoolOp() | ast.Compare():
            return _operation(node, inside)
        case ast.IfExp():
            parts = _conditional(node, inside)
            return _Group(parts) if inside else parts
        case ast.UnaryOp():
            return [_SYMBOLS[type(node.op)], _doc(node.operand, _PRECEDENCE[type(node.op)], inside=inside)]
        case ast.Attribute() | ast.Call() | ast.Subscript():
            return _chain(node, inside)
        case ast.List():
            return _bracketed("[", _separated([_doc(item) for item in node.elts]), "]")
        case ast.Tuple():
            items = [_doc(item) for item in node.elts]
            return _bracketed("(", [*items, ","] if len(items) == 1 else _separated(items), ")")
        case ast.Dict(keys=keys, values=values):
            pairs: list[_Doc] = [
                [_doc(key), ": ", _doc(value)] for key, value in zip(keys, values, strict=True) if key is not None
            ]
            return _bracketed("{", _separated(pairs), "}")
        case ast.ListComp():
            return _bracketed("[", _Group(_comprehension(node)), "]")
        case ast.GeneratorExp():
            return _bracketed("(", _Group(_comprehension(node)), ")")
        case ast.Starred():
            return ["*", _doc(node.value, _COMPARE + 1)]
        case ast.Constant(value=str() as text):
            shown = repr(text)
            return f'"{shown[1:-1]}"' if shown[0] == "'" and '"' not in text else shown
    return ast.unparse(node)


def _conditional(node: ast.IfExp, inside: bool) -> list[_Doc]:
    space: _Doc = _Break(" ") if inside else " "
    if isinstance(node.orelse, ast.IfExp):
        otherwise = _conditional(node.orelse, inside)
    else:
        otherwise = [_doc(node.orelse, _TERNARY, inside=inside)]
    body, test = (_doc(part, _TERNARY + 1, inside=inside) for part in (node.body, node.test))
    return [body, space, "if ", test, space, "else ", *otherwise]


def _binds(node: ast.expr) -> int:
    match node:
        case ast.BinOp() | ast.BoolOp() | ast.UnaryOp():
            return _PRECEDENCE[type(node.op)]
        case ast.IfExp() | ast.Compare():
            return _PRECEDENCE[type(node)]
    return _ATOM


def _flattened(node: ast.expr) -> tuple[list[ast.expr], list[str]]:
    """Operands and operators of a chain of one precedence: `a + b - c`."""
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators], [_SYMBOLS[type(op)] for op in node.ops]
    if isinstance(node, ast.BoolOp):
        return list(node.values), [_SYMBOLS[type(node.op)]] * (len(node.values) - 1)
    assert isinstance(node, ast.BinOp), "other expressions have no operands"
    if isinstance(node.op, ast.Pow) or not (isinstance(node.left, ast.BinOp) and _binds(node.left) == _binds(node)):
        return [node.left, node.right], [_SYMBOLS[type(node.op)]]
    operands, operators = _flattened(node.left)
    return [*operands, node.right], [*operators, _SYMBOLS[type(node.op)]]


def _operation(node: ast.BinOp | ast.BoolOp | ast.Compare, inside: bool) -> _Doc:
    operands, operators = _flattened(node)
    own = _binds(node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        left, right = _doc(node.left, _POWER + 1, inside=inside), _doc(node.right, _UNARY, inside=inside)
        hugs = _is_simple(node.left) and _is_simple(node.right) and not isinstance(node.left, ast.UnaryOp)
        space: _Doc = "" if hugs else _Break(" ") if inside else " "
        return _Group([left, space, "**", "" if hugs else " ", right])
    first = own if isinstance(node, ast.BinOp) else own + 1
    parts: list[_Doc] = [_spliced(operands[0], first, inside)]
    for operator, operand in zip(operators, operands[1:], strict=True):
        parts += [_Break(" ") if inside else " ", f"{operator} ", _spliced(operand, own + 1, inside)]
    return _Group(parts) if inside else parts


def _spliced(node: ast.expr, at_least: int, inside: bool) -> _Doc:
    """An operand; `and` within `or` breaks where the whole does."""
    doc = _doc(node, at_least, inside=inside)
    own_group = isinstance(node, ast.BoolOp) and _binds(node) >= at_least and isinstance(doc, _Group)
    return doc.content if own_group and isinstance(doc, _Group) else doc


def _is_simple(node: ast.expr) -> bool:
    """Whether the sign of a power stands close to an operand: a name, a number, an attribute of a name."""
    if isinstance(node, ast.UnaryOp):
        return not isinstance(node.op, ast.Not) and _is_simple(node.operand)
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) or (isinstance(node, ast.Constant) and isinstance(node.value, int | float))


def _links(node: ast.expr) -> list[ast.expr]:
    """The parts of a chain of calls, attributes and subscripts, the outermost first; the last is its root."""
    links = [node]
    while isinstance(node, _CHAIN):
        node = node.func if isinstance(node, ast.Call) else node.value
        links.append(node)
    return links


def _dots_after_brackets(node: ast.expr) -> int:
    """How many attributes a chain has of what was called or subscripted: 2 in `f(x).view(1).permute(0)`."""
    return sum(isinstance(link, ast.Attribute) and _ends_in_bracket(link.value) for link in _links(node))


def _is_fluent(node: ast.expr) -> bool:
    """Whether a chain breaks before its dots rather than within its brackets."""
    return _dots_after_brackets(node) >= 2


def _ends_in_bracket(node: ast.expr) -> bool:
    return isinstance(node, ast.Call | ast.Subscript) or _binds(node) < _ATOM


def _chain(node: ast.expr, inside: bool) -> _Doc:
    *links, root = _links(node)
    fluent = inside and _is_fluent(node)
    number = isinstance(root, ast.Constant) and isinstance(root.value, int | float)
    parts: list[_Doc] = [_bracketed("(", _doc(root), ")") if number else _doc(root, _ATOM)]
    for link in reversed(links):
        if isinstance(link, ast.Attribute):
            parts += [_Break()] if fluent and _ends_in_bracket(link.value) else []
            parts.append(f".{link.attr}")
        elif isinstance(link, ast.Call):
            parts.append(_arguments(link))
        else:
            assert isinstance(link, ast.Subscript), "a chain has no other links"
            parts.append(_bracketed("[", _index(link.slice), "]"))
    return _Group(parts) if fluent else parts


def _arguments(call: ast.Call) -> _Doc:
    match call:
        case ast.Call(args=[ast.GeneratorExp() as generator], keywords=[]):
            return _bracketed("(", _Group(_comprehension(generator)), ")")
    given = [_doc(argument) for argument in call.args]
    given += [[f"{keyword.arg}=", _doc(keyword.value)] for keyword in call.keywords]
    return _bracketed("(", _Group(_separated(given)), ")")


def _index(node: ast.expr) -> _Doc:
    if isinstance(node, ast.Tuple) and node.elts:
        items = [_index(item) if isinstance(item, ast.Slice) else _doc(item) for item in node.elts]
        return [*items, ","] if len(items) == 1 else _Group(_separated(items))
    if not isinstance(node, ast.Slice):
        return _doc(node)
    bounds = [bound for bound in (node.lower, node.upper, node.step) if bound is not None]
    space = "" if all(map(_is_plain_bound, bounds)) else " "
    parts: list[_Doc] = [] if node.lower is None else [_doc(node.lower), space]
    parts.append(":")
    parts += [] if node.upper is None else [space, _doc(node.upper)]
    parts += [] if node.step is None else [space if node.upper is not None else "", ":", space, _doc(node.step)]
    return parts


def _is_plain_bound(node: ast.expr) -> bool:
    return isinstance(node.operand if isinstance(node, ast.UnaryOp) else node, ast.Name | ast.Constant)


def _comprehension(node: ast.ListComp | ast.GeneratorExp) -> list[_Doc]:
    parts: list[_Doc] = [_Group(_doc(node.elt))]
    for loop in node.generators:
        parts += [_Break(" "), "for ", _bare(loop.target), " in ", _doc(loop.iter, _TERNARY + 1)]
        for test in loop.ifs:
            parts += [_Break(" "), "if ", _doc(test, _TERNARY + 1)]
    return parts


def _parameters(arguments: ast.arguments) -> list[_Doc]:
    missing = [None] * (len(arguments.args) - len(arguments.defaults))
    return [
        argument.arg if default is None else [f"{argument.arg}=", _doc(default)]
        for argument, default in zip(arguments.args, [*missing, *arguments.defaults], strict=True)
    ]


# ---- brackets ------------------------------------------------------------------------------------------------------


def _bracketed(opening: str, content: _Doc, closing: str) -> _Doc:
    if content in ([], _Group([])):
        return opening + closing
    return _Group([opening, _Indent([_Break(), content]), _Break(), closing])


def _separated(items: Sequence[_Doc]) -> list[_Doc]:
    """Items with commas, each on a line of its own where the group breaks; the last of several has a comma there."""
    parts: list[_Doc] = []
    for item in items:
        parts += [",", _Break(" "), item] if parts else [item]
    return [*parts, _IfBroken(",")] if len(items) > 1 else parts


def _joined(items: Sequence[_Doc], text: str) -> list[_Doc]:
    return [part for item in items for part in (text, item)][1:]
