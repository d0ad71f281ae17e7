"""Checked trees → generated source: every name spelt as the generated module spells it.

Names resolve to locals, then arguments, inputs, layers, parameters and buffers, then the functions of the language.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from builder.errors import did_you_mean
from builder.evaluate import evaluate
from builder.language import (
    ATTRIBUTES,
    BUILTINS,
    DTYPES,
    FUNCTIONAL,
    LAYER_ATTRIBUTES,
    MATH,
    METHODS,
    RESERVED,
    TORCH,
    LanguageError,
    names_read,
    targets,
)

MODULE_METHODS = frozenset({"to", "float", "double", "half", "bfloat16"})  # of nn.Module: they change it
IN_PLACE = {  # functions that can write into their input, with the number of arguments before the one that says so
    "celu": 2, "elu": 2, "hardsigmoid": 1, "hardswish": 1, "hardtanh": 3, "leaky_relu": 2, "mish": 1, "relu6": 1,
    "selu": 1, "silu": 1, "dropout": 3, "embedding": 3, "embedding_bag": 3, "normalize": 4, "batch_norm": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Scope:
    """What the names in a piece of text stand for.

    Attributes:
        arguments: Plain values (numbers, strings, lists), as the generated code spells them.
        tensors: Inputs and other values that are tensors, or functions given by the caller (`model`).
        members: Layers, parameters and buffers, as the generated code spells them (`self.wte`).
        buffers: The members that may be assigned to.
        layers: The members that are modules, whose own methods change them (`w.half()`).
        parts: Names that may be read from a member (`h[0].attn`): the layers and buffers of the file's blocks.
    """

    arguments: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    members: Mapping[str, str] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    layers: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()

    def names(self) -> set[str]:
        """All names that text in this scope may read, the functions left out."""
        return {*self.arguments, *self.tensors, *self.members}


class Renderer(ast.NodeTransformer):
    """Rewrites checked trees so that every name is spelt as the generated module spells it.

    A function that exists in both `math` and `torch` (`sqrt`) is `math`'s where it is given plain numbers only
    (arguments, shapes and what is computed from them), and `torch`'s otherwise.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.locals: set[str] = set()
        self.plain: set[str] = set(scope.arguments)
        self.layers: set[str] = set(scope.layers)  # names that stand for a layer, locals among them
        self.grown: frozenset[str] = frozenset()  # lists that are appended to

    def expression(self, tree: ast.expr) -> str:
        """The source text of an expression."""
        return ast.unparse(ast.fix_missing_locations(self.visit(tree)))

    def statements(self, body: Iterable[ast.stmt], indent: int = 0) -> Iterator[tuple[int, str]]:
        """The source lines of statements, each with the line of the text that it came from."""
        pad = "    " * indent
        body = list(body)
        self.grown = self.grown if indent else _grown_lists(body)
        for statement in body:
            line = statement.lineno
            match statement:
                case ast.Assign() | ast.AugAssign():
                    yield line, pad + self._assignment(statement)
                case ast.Return():
                    if statement.value is None:
                        raise LanguageError("returns nothing", line, "return a tensor, a tuple or a dict")
                    if isinstance(statement.value, ast.Constant):
                        what = f"returns {type(statement.value.value).__name__}"
                        raise LanguageError(what, line, "return a tensor, a tuple or a dict of tensors")
                    yield line, f"{pad}return {self._bare(statement.value)}"
                case ast.For():
                    self._bind(
                        statement.target,
                        plain=self._iterates_numbers(statement.iter),
                        layer=bool(names_read(statement.iter) & self.layers),
                    )
                    source = self.expression(statement.iter)
                    target = _without_parentheses(statement.target, ast.unparse(statement.target))
                    yield line, f"{pad}for {target} in {source}:"
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
            if statement.target.id in self.grown:
                assert isinstance(statement.value, ast.List), "a list grows by a list"
                return f"{statement.target.id}.append({self.expression(statement.value.elts[0])})"
            read = ast.copy_location(ast.Name(statement.target.id, ast.Load()), statement.target)
            right: ast.expr = ast.BinOp(read, statement.op, statement.value)
            left: ast.expr = statement.target
        else:
            if len(statement.targets) > 1:
                raise LanguageError("`a = b = ...`", statement.lineno, "use two assignments")
            left, right = statement.targets[0], statement.value
        right = ast.copy_location(right, statement)
        plain, layer = self._is_plain(right), self._is_layer(right)
        value = self._bare(right)
        if isinstance(left, ast.Name) and left.id in self.scope.buffers:
            buffer = self.scope.members[left.id]
            if plain:
                return f"{buffer}.fill_({value})"
            whole = isinstance(right, ast.Call | ast.Name | ast.Attribute | ast.Subscript)
            return f"{buffer}.copy_({value if whole else f'({value})'}.detach())"
        self._bind(left, plain=plain, layer=layer)
        return f"{_without_parentheses(left, ast.unparse(left))} = {value}"

    def _bare(self, tree: ast.expr) -> str:
        """The source text of an expression, a tuple without the parentheses around it."""
        return _without_parentheses(tree, self.expression(tree))

    def _bind(self, target: ast.expr, *, plain: bool, layer: bool = False) -> None:
        for name in targets(target):
            if name in RESERVED:
                raise LanguageError(
                    f"{name!r} has a meaning in the generated source", target.lineno, "use another name"
                )
            if name in self.scope.members or name in self.scope.arguments:
                raise LanguageError(f"{name!r} names a layer, parameter or argument", target.lineno, "use another name")
            self.locals.add(name)
            (self.plain.add if plain else self.plain.discard)(name)
            (self.layers.add if layer else self.layers.discard)(name)

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
        _check_in_place(node)
        if isinstance(function, ast.Name) and not self._is_bound(function.id):
            _check_dropout(function.id, node)
            _check_range(function.id, node)
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
            self._refuse_prefix(node)
            known = {*ATTRIBUTES, *(LAYER_ATTRIBUTES if self._is_layer(node.value) else ())}
            raise LanguageError(
                f"attribute {node.attr!r} is not part of the language", node.lineno, did_you_mean(node.attr, known)
            )
        node.value = self.visit(node.value)
        return node

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        """A comprehension; its names are locals within it."""
        for generator in node.generators:
            layer = bool(names_read(generator.iter) & self.layers)
            generator.iter = self.visit(generator.iter)
            self._bind(generator.target, plain=self._iterates_numbers(generator.iter), layer=layer)
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
        if not self._is_part(function):
            self._refuse_prefix(function)
        if function.attr not in METHODS and not self._is_part(function):
            raise LanguageError(
                f"method {function.attr!r} is not part of the language",
                function.lineno,
                did_you_mean(function.attr, METHODS),
            )
        if function.attr in MODULE_METHODS and self._is_layer(function.value):
            what = f"{ast.unparse(function)}() would change the layer itself"
            raise LanguageError(what, function.lineno, "call the layer, and convert its input or output")
        function.value = self.visit(function.value)
        return function

    def _is_bound(self, name: str) -> bool:
        return name in self.locals or name in self.scope.names()

    def _is_layer(self, node: ast.expr) -> bool:
        """Whether an expression stands for a layer: a name of one, or a part of one that is not a tensor."""
        while isinstance(node, ast.Attribute | ast.Subscript):
            if isinstance(node, ast.Attribute) and node.attr in LAYER_ATTRIBUTES - self.scope.parts:
                return False
            node = node.value
        return isinstance(node, ast.Name) and node.id in self.layers

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

    def _refuse_prefix(self, node: ast.Attribute) -> None:
        """Refuses `self.fc`, `torch.relu`, `F.relu`: here functions and layers stand by their own names."""
        base: ast.expr = node
        while isinstance(base, ast.Attribute):
            base = base.value
        if isinstance(base, ast.Name) and base.id in RESERVED:
            raise LanguageError(f"unknown name {base.id!r}", node.lineno, f"write {node.attr} by its own name")

    def _unknown(self, node: ast.Name) -> LanguageError:
        near = {*self.scope.names(), *self.locals, *TORCH, *FUNCTIONAL, *MATH, *BUILTINS}
        return LanguageError(f"unknown name {node.id!r}", node.lineno, did_you_mean(node.id, near, most=6))


def _grown_lists(body: Iterable[ast.stmt]) -> frozenset[str]:
    """Locals that begin as a list, grow by `+= [item]`, and are read by functions of tensors alone, not looped over."""
    nodes = [node for statement in body for node in ast.walk(statement)]
    begins = [name for node in nodes if isinstance(node, ast.Assign) for name in _begins_as_list(node)]
    grows = [
        node.target.id
        for node in nodes
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and isinstance(node.op, ast.Add)
        if isinstance(node.value, ast.List) and len(node.value.elts) == 1
    ]
    reads = [
        argument.id
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TORCH | FUNCTIONAL
        for argument in node.args
        if isinstance(argument, ast.Name)
    ]
    known = Counter([*begins, *grows, *reads])
    every = Counter(node.id for node in nodes if isinstance(node, ast.Name))
    return frozenset(name for name in {*begins} & {*grows} if known[name] == every[name])


def _begins_as_list(node: ast.Assign) -> list[str]:
    target, value = node.targets[0], node.value
    pairs = [(target, value)]
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        pairs = list(zip(target.elts, value.elts, strict=True))
    return [name.id for name, item in pairs if isinstance(name, ast.Name) and isinstance(item, ast.List)]


def _without_parentheses(tree: ast.expr, text: str) -> str:
    return text[1:-1] if isinstance(tree, ast.Tuple) and len(tree.elts) > 1 else text


def _check_dropout(name: str, call: ast.Call) -> None:
    """Refuses `dropout(x, p)`, which in torch drops in eval mode as well."""
    if name == "dropout" and len(call.args) < 3 and not any(keyword.arg == "training" for keyword in call.keywords):
        raise LanguageError(
            "dropout without `training` drops in eval mode too", call.lineno, "write dropout(x, 0.1, training)"
        )


def _check_in_place(call: ast.Call) -> None:
    """Refuses the arguments by which a function writes into what it is given: a parameter may be frozen."""
    for keyword in call.keywords:
        if keyword.arg in ("out", "inplace", "max_norm"):
            raise LanguageError(
                f"{keyword.arg}= writes into a tensor in place", call.lineno, "use what the call returns"
            )
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if name in IN_PLACE and len(call.args) > IN_PLACE[name]:
        raise LanguageError(f"{name} with so many arguments may write in place", call.lineno, "give them by name")


def _check_range(name: str, call: ast.Call) -> None:
    """Bounds a range of constants as in an `=` expression."""
    if name == "range" and not any(names_read(argument) for argument in call.args):
        evaluate(call, {})
