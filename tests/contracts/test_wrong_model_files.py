"""Wrong model files as people write them: each is refused with the address, the marked line and the remedy.

Each file is written out with a mark, `#!`, on the line that the error has to name; the mark is a comment to YAML and
within a `forward` alike. The cases come from what torch, YAML and this language's own first users get wrong.
"""

import pytest

import builder

FC = "fc: {kind: Linear, in_features: 4, out_features: 4}"
HEAD = f"inputs: {{x: {{shape: [batch, 4]}}}}\nlayers:\n  {FC}\n"


def layers(text):
    """A model of one input and some layers in order, the first on line 3."""
    return "inputs: {x: {shape: [batch, 4]}}\nlayers:\n" + "".join(f"  {line}\n" for line in text.splitlines())


def forward(text):
    """A model of one layer with a forward of its own, which begins on line 5."""
    return HEAD + "forward: |\n" + "".join(f"  {line}\n" for line in text.splitlines())


def section(text):
    """A model of one layer, followed by some section."""
    return HEAD + text + "\n"


def raw(text):
    """A model of one raw Parameter, on line 3."""
    return layers(f"w: {{kind: Parameter, {text}}} #!") + "forward: x @ w\n"


FILES = [
    # YAML itself
    pytest.param(
        f"layers:\n  {FC}\n\tforward: fc(x) #!\n", "yaml", "cannot start any token", "indentation", id="a tab"
    ),
    pytest.param(layers(f"{FC}\n{FC} #!"), "yaml", "duplicate key", "rename or remove", id="a layer twice"),
    pytest.param(
        "layers:\n  fc: {kind: Linear\n  b: 3 #!\n",
        "yaml",
        "expected ',' or '}'",
        "colons",
        id="a brace that stays open",
    ),
    pytest.param("layers: [a: b: c] #!\n", "yaml", "expected ',' or ']'", "colons", id="two colons"),
    pytest.param("layers: *base #!\n", "yaml", "undefined alias", "colons", id="an alias of nothing"),
    pytest.param(
        layers("fc: {kind: Linear, in_features: =max(4, 3), out_features: 4} #!"),
        "layers.fc",
        "argument '3)' is not a name",
        "quotes",
        id="an expression that YAML cut at a comma",
    ),
    pytest.param(
        "args: {dims: [4, 8]}\n" + layers("fc: {kind: Linear, in_features: =dims[0], out_features: =[4, 4][0]} #!"),
        "yaml",
        "expected ',' or '}', but got '['",
        "quotes",
        id="an expression that YAML cut at a bracket",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: 4, out_features: 4, bias: off, dtype: no} #!"),
        "layers.fc.dtype",
        "False",
        "float16",
        id="no is a bool in YAML 1.1",
    ),
    pytest.param(
        layers('fc: {kind: Linear, in_features: "4", out_features: 4} #!'),
        "layers.fc.in_features",
        "is a number, got '4'",
        "write a number",
        id="a number in quotes",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: 4.0, out_features: 4} #!"),
        "layers.fc.in_features",
        "whole number, got 4.0",
        "//",
        id="a float for a size",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: 1e1, out_features: 4} #!"),
        "layers.fc.in_features",
        "number",
        "//",
        id="1e1 is not a whole number",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: ~, out_features: 4} #!"),
        "layers.fc.in_features",
        "got None",
        "write a number",
        id="nothing where a number belongs",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: [4], out_features: 4} #!"),
        "layers.fc.in_features",
        "got [4]",
        "write a number",
        id="a list where a number belongs",
    ),
    pytest.param("layer: #!\n  fc: {kind: Linear}\n", "layer", "unknown key", "layers", id="layer for layers"),
    pytest.param("Layers: #!\n  fc: {kind: Linear}\n", "Layers", "unknown key", "layers", id="a capital letter"),
    pytest.param(section("intit: #!\n  all: {policy: zeros}"), "intit", "unknown key", "'init'", id="init misspelt"),
    pytest.param(section("optimizer: #!\n  lr: 1"), "optimizer", "unknown key", "known", id="a part of a run"),
    pytest.param("layers: 3 #!\n", "layers", "got 3", "NAME", id="layers that are a number"),
    pytest.param("layers: [fc] #!\n", "layers", "got ['fc']", "NAME", id="layers that are a list"),
    # kinds and arguments
    pytest.param(layers("fc: {in_features: 4, out_features: 4} #!"), "layers.fc.kind", "missing", "kind", id="no kind"),
    pytest.param(layers("fc: Linear #!"), "layers.fc", "'Linear' is not a layer", "{kind", id="a kind alone"),
    pytest.param(
        layers("fc: {kind: nn.Linear, in_features: 4, out_features: 4} #!"),
        "layers.fc.kind",
        "nn.Linear",
        "Linear",
        id="nn. before a kind",
    ),
    pytest.param(
        layers("fc: {kind: linear, in_features: 4, out_features: 4} #!"),
        "layers.fc.kind",
        "unknown kind 'linear'",
        "'Linear'",
        id="a kind in small letters",
    ),
    pytest.param(
        layers("fc: {kind: Dense, units: 4} #!"), "layers.fc.kind", "unknown kind", "torch.nn", id="a kind of Keras"
    ),
    pytest.param(layers("a: {kind: GELU()} #!"), "layers.a.kind", "unknown kind", "'GELU'", id="a call as a kind"),
    pytest.param(layers("a: {kind: 3} #!"), "layers.a.kind", "got 3", "give text", id="a number as a kind"),
    pytest.param(layers("a: {kind: Relu} #!"), "layers.a.kind", "unknown kind", "'ReLU'", id="Relu"),
    pytest.param(
        layers("n: {kind: BatchNorm, num_features: 4} #!"),
        "layers.n.kind",
        "unknown kind",
        "BatchNorm1d",
        id="BatchNorm without its dimensions",
    ),
    pytest.param(
        layers("fc: {kind: Linear, 4, out_features: 4} #!"),
        "layers.fc.4",
        "got 4",
        "quotes",
        id="an argument by its position",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_feature: 4, out_features: 4} #!"),
        "layers.fc.in_feature",
        "no argument",
        "'in_features'",
        id="an argument misspelt",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: 4} #!"), "layers.fc", "needs 'out_features'", "give", id="one missing"
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: 4, out_features: -4} #!"),
        "layers.fc.out_features",
        "is -4",
        "one or more",
        id="a negative size",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: yes, out_features: 4} #!"),
        "layers.fc.in_features",
        "got True",
        "bools",
        id="yes for a number",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: 4, out_features: 4, activation: relu} #!"),
        "layers.fc.activation",
        "no argument",
        "known",
        id="an activation as an argument",
    ),
    pytest.param(
        layers("e: {kind: Embedding, num_embeddings: 0, embedding_dim: 4} #!"),
        "layers.e.num_embeddings",
        "is 0",
        "one or more",
        id="an Embedding of nothing",
    ),
    pytest.param(
        layers("e: {kind: Embedding, num_embeddings: 5, embedding_dim: 4, padding_idx: 5} #!"),
        "layers.e",
        "adding_idx",
        "arguments",
        id="padding_idx beyond the rows",
    ),
    pytest.param(
        layers("e: {kind: Embedding, num_embeddings: 5, embedding_dim: 4, padding_idx: -1} #!"),
        "layers.e.padding_idx",
        "-1",
        "count from the front",
        id="padding_idx from the end",
    ),
    pytest.param(
        layers("a: {kind: MultiheadAttention, embed_dim: 10, num_heads: 4} #!"),
        "layers.a",
        "divisible",
        "arguments",
        id="heads that do not divide",
    ),
    pytest.param(
        layers("c: {kind: Conv2d, in_channels: 3, out_channels: 4, kernel_size: 3, groups: 2} #!"),
        "layers.c",
        "divisible by groups",
        "arguments",
        id="groups that do not divide",
    ),
    pytest.param(
        layers("c: {kind: Conv2d, in_channels: 3, out_channels: 4} #!"),
        "layers.c",
        "needs 'kernel_size'",
        "give",
        id="no kernel",
    ),
    pytest.param(layers("d: {kind: Dropout, p: 1.5} #!"), "layers.d", "1.5", "arguments", id="a probability above one"),
    pytest.param(layers("d: {kind: Dropout, p: .nan} #!"), "layers.d.p", "nan", "finite", id="no probability"),
    pytest.param(
        layers("fc: {kind: LazyLinear, out_features: 4} #!"),
        "layers.fc.kind",
        "unknown kind",
        "lazy",
        id="a lazy layer",
    ),
    pytest.param(
        layers("s: {kind: ModuleDict} #!"), "layers.s.kind", "unknown kind", "block", id="a container by its class"
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: 4, out_features: 4, device: cuda} #!"),
        "layers.fc.device",
        "no device",
        "trainer=gpu",
        id="a device in a layer",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: 4, out_features: 4, dtype: fp16} #!"),
        "layers.fc.dtype",
        "unknown dtype",
        "float16",
        id="a dtype by its nickname",
    ),
    pytest.param(
        layers("fc: {kind: timm.layers.Mlp, in_features: 4} #!"),
        "layers.fc.kind",
        "not allowed",
        "allow",
        id="a class of another package",
    ),
    # names
    pytest.param(layers("1st: {kind: ReLU} #!"), "layers.1st", "attribute", "letters", id="a name that begins with 1"),
    pytest.param(layers("my-layer: {kind: ReLU} #!"), "layers.my-layer", "attribute", "letters", id="a hyphen"),
    pytest.param(
        layers("class: {kind: ReLU} #!"), "layers.class", "cannot be an attribute", "letters", id="a word of Python"
    ),
    pytest.param(layers("forward: {kind: ReLU} #!"), "layers.forward", "hide", "choose", id="a layer called forward"),
    pytest.param(
        layers("self: {kind: ReLU} #!"),
        "layers.self",
        "meaning in the generated source",
        "choose",
        id="a layer called self",
    ),
    pytest.param(layers("parameters: {kind: ReLU} #!"), "layers.parameters", "hide", "choose", id="called parameters"),
    pytest.param(layers("1: {kind: ReLU} #!"), "layers.1", "type int", "quotes", id="a number as a name"),
    # expressions
    pytest.param(
        layers("fc: {kind: Linear, in_features: =d, out_features: 4} #!"),
        "layers.fc.in_features",
        "unknown name 'd'",
        "known",
        id="an arg that is not declared",
    ),
    pytest.param(
        "args: {d: 4}\n" + layers("fc: {kind: Linear, in_features: d, out_features: 4} #!"),
        "layers.fc.in_features",
        "got 'd'",
        "=d",
        id="an expression without its sign",
    ),
    pytest.param(
        "args: {d: 4}\n" + layers("fc: {kind: Linear, in_features: =d/2, out_features: 4} #!"),
        "layers.fc.in_features",
        "whole number, got 2.0",
        "//",
        id="a division that leaves a float",
    ),
    pytest.param(
        "args: {d: 4}\n" + layers("fc: {kind: Linear, in_features: =d*, out_features: 4} #!"),
        "layers.fc.in_features",
        "syntax",
        "Python",
        id="half an expression",
    ),
    pytest.param("args: {d: =e, e: 4} #!\n" + layers(FC), "args.d", "unknown name 'e'", "known", id="a later arg"),
    pytest.param("args:\n  d: ??? #!\n" + layers(FC), "args.d", "no value", "give d", id="an arg that is asked for"),
    pytest.param(
        "args: {d: 0}\n" + layers("fc: {kind: Linear, in_features: =4//d, out_features: 4} #!"),
        "layers.fc.in_features",
        "division",
        "here d = 0",
        id="a division by zero",
    ),
    pytest.param(
        "args: {dims: [4]}\n" + layers("fc: {kind: Linear, in_features: '=dims[1]', out_features: 4} #!"),
        "layers.fc.in_features",
        "range",
        "here dims = [4]",
        id="an index beyond a list",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: '${d}', out_features: 4} #!"),
        "layers.fc.in_features",
        "'d' not found",
        "interpolation",
        id="an interpolation of nothing",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: '${oc.env:D}', out_features: 4} #!"),
        "layers.fc.in_features",
        "resolver",
        "`=` expression",
        id="a resolver",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: 4, out_features: 4, repeat: 2.5} #!"),
        "layers.fc.repeat",
        "2.5",
        "a count is a whole number",
        id="two and a half layers",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: 4, out_features: 4, repeat: 100000000} #!"),
        "layers.fc.repeat",
        "100000000",
        "from 0 to",
        id="layers without end",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: '=4*i', out_features: 4} #!"),
        "layers.fc.in_features",
        "unknown name 'i'",
        "known",
        id="an index outside a repeat",
    ),
    pytest.param(
        layers("fc: {kind: Linear, in_features: 4, out_features: 4, when: 1} #!"),
        "layers.fc.when",
        "1 is a int",
        "true, false or an `=` expression",
        id="a number as a condition",
    ),
    # raw parameters
    pytest.param(raw("shape: [4, 4]"), "layers.w", "init", "init:", id="no init"),
    pytest.param(raw("init: zeros"), "layers.w", "shape", "give shape", id="no shape"),
    pytest.param(
        raw("shape: 4, init: zeros"),
        "layers.w",
        "needs a shape",
        "give shape",
        id="a number for a shape",
    ),
    pytest.param(
        raw("shape: [4, 0], init: zeros"),
        "layers.w.shape",
        "0",
        "above zero",
        id="a size 0",
    ),
    pytest.param(
        raw("shape: [4, 4], init: xavier_uniform"),
        "layers.w.init",
        "fan-in",
        "axes: [in, out]",
        id="fans of a raw Parameter",
    ),
    pytest.param(
        raw("shape: [4, 4], axes: [out], init: zeros"),
        "layers.w.axes",
        "['out']",
        "one `in`",
        id="an axis too few",
    ),
    pytest.param(
        raw("shape: [4], init: orthogonal"),
        "layers.w.init",
        "2 dimensions",
        "another policy",
        id="an orthogonal vector",
    ),
    pytest.param(
        raw("shape: [4, 4], init: normal_"),
        "layers.w.init.policy",
        "unknown policy 'normal_'",
        "'normal'",
        id="a policy with torch's underscore",
    ),
    pytest.param(
        raw("shape: [4], init: {policy: normal, stdev: 1}"),
        "layers.w.init.stdev",
        "no argument",
        "'std'",
        id="a policy's argument misspelt",
    ),
    pytest.param(
        raw("shape: [4], init: {policy: uniform, a: 1, b: -1}"),
        "layers.w.init.a",
        "no value is from 1 to -1",
        "a is below b",
        id="bounds in the wrong order",
    ),
    pytest.param(
        raw("shape: [3], init: {policy: values, values: [1, 2]}"),
        "layers.w.init.values",
        "(2,)",
        "nested lists",
        id="values too few",
    ),
    pytest.param(
        raw("shape: [3], init: {policy: values, values: [1, two, 3]}"),
        "layers.w.init.values",
        "not numbers in even rows",
        "shape (3,)",
        id="a word among values",
    ),
    pytest.param(
        raw("shape: [3], requires_grad: false, init: zeros"),
        "layers.w",
        "requires_grad",
        "known",
        id="requires_grad",
    ),
    # rules
    pytest.param(
        section("init:\n  all: {match: 'conv.*', policy: zeros} #!"),
        "init.all",
        "matches no parameter",
        "the model has",
        id="an init rule that matches nothing",
    ),
    pytest.param(
        section("init:\n  all: {policy: kaiming} #!"),
        "init.all.policy",
        "unknown",
        "kaiming_normal",
        id="kaiming alone",
    ),
    pytest.param(section("init: kaiming_normal #!"), "init", "got", "NAME", id="a policy for all of init"),
    pytest.param(
        section("init:\n  a: {match: fc.weight, policy: zeros} #!\n  b: {match: '*', policy: ones}"),
        "init.a",
        "decides nothing: init.b",
        "put it after",
        id="a rule that a later one overrides",
    ),
    pytest.param(
        section("init:\n  a: {match: fc.bias, policy: kaiming_normal} #!"),
        "init.a",
        "fc.bias",
        "add min_ndim: 2",
        id="fans of a bias",
    ),
    pytest.param(
        section("init:\n  a: {match: '*', policy: normal, std: 0,02} #!"),
        "init.a.2",
        "got 2",
        "quotes",
        id="a comma for a point",
    ),
    pytest.param(
        section("init:\n  a: {match: '*', policy: normal, std: 1e-2x} #!"),
        "init.a.std",
        "1e-2x",
        "write 0.02",
        id="text for a std",
    ),
    pytest.param(
        section("init:\n  a: {match: '*', policy: trunc_normal, a: 2, b: -2} #!"),
        "init.a.a",
        "no value is from 2 to -2",
        "a is below b",
        id="bounds of a truncation in the wrong order",
    ),
    pytest.param(
        section("init:\n  a: {match: '*', min_ndim: two, policy: zeros} #!"),
        "init.a.min_ndim",
        "two",
        "whole number",
        id="a word for dimensions",
    ),
    pytest.param(
        section("freeze:\n  a: {match: 'encoder.*'} #!"),
        "freeze.a",
        "matches no parameter",
        "the model has",
        id="a freeze rule that matches nothing",
    ),
    pytest.param(section("freeze: [fc.weight] #!"), "freeze", "got", "NAME", id="a list for freeze"),
    pytest.param(
        section("freeze:\n  a: {match: fc.weight, rows: [0, 9]} #!"),
        "freeze.a.rows",
        "rows 0:9",
        "[0, 4]",
        id="rows beyond the end",
    ),
    pytest.param(
        section("freeze:\n  a: {match: fc.weight, rows: [3, 1]} #!"),
        "freeze.a.rows",
        "rows 3:1 are none",
        "low below high",
        id="rows in the wrong order",
    ),
    pytest.param(
        section("freeze:\n  a: {match: fc.weight, untill: {epoch: 1}} #!"),
        "freeze.a.untill",
        "unknown key",
        "'until'",
        id="until misspelt",
    ),
    pytest.param(
        section("freeze:\n  a: {match: fc.weight, until: {epochs: 1}} #!"),
        "freeze.a.until",
        "epochs",
        "'epoch'",
        id="epochs for epoch",
    ),
    # ties
    pytest.param(
        section("tie:\n  fc.weight: head.weight #!"),
        "tie.fc.weight",
        "no parameter",
        "'fc.weight'",
        id="a tie to nothing",
    ),
    pytest.param(section("tie:\n  fc.weight: fc.bias #!"), "tie.fc.weight", "(4, 4)", "equal shapes", id="two shapes"),
    pytest.param(section("tie:\n  fc.weight: fc.weight #!"), "tie.fc.weight", "cycle", "remove", id="a tie to itself"),
    pytest.param(section("tie: [fc.weight, fc.bias] #!"), "tie", "got", "NAME", id="a list for tie"),
    # buffers
    pytest.param(section("buffers:\n  b: 3 #!"), "buffers.b", "3", "value", id="a number for a buffer"),
    pytest.param(
        section("buffers:\n  b: {value: =zeros(d)} #!"), "buffers.b.value", "'d'", "known", id="a buffer over nothing"
    ),
    pytest.param(
        section("buffers:\n  b: {value: =1 / (arange(0, 4, 2) / 4), persistent: false} #!"),
        "buffers.b.2) / 4)",
        "unknown key",
        "quotes",
        id="a buffer that YAML cut",
    ),
    pytest.param(
        section("buffers:\n  fc: {value: 1} #!"),
        "buffers.fc",
        "both layers and buffers",
        "rename",
        id="a buffer with a layer's name",
    ),
    # inputs
    pytest.param(
        f"inputs: {{x: [batch, 4]}} #!\nlayers:\n  {FC}\n",
        "inputs.x",
        "got ['batch', 4]",
        "shape",
        id="a list for an input",
    ),
    pytest.param(
        f"inputs: {{x: {{shape: batch}}}} #!\nlayers:\n  {FC}\n",
        "inputs.x.shape",
        "batch",
        "list",
        id="one name for a shape",
    ),
    pytest.param(
        f"inputs: {{x: {{shape: [batch, 4], dtype: long}}}} #!\nlayers:\n  {FC}\n",
        "inputs.x.dtype",
        "'int64', 'uint8', 'bool' or 'complex64', got 'long'",
        "one of these",
        id="a dtype by its old name",
    ),
    pytest.param(
        f"inputs: {{x: {{shape: [batch, -1]}}}} #!\nlayers:\n  {FC}\n",
        "inputs.x.shape",
        "size -1",
        "a name such as batch",
        id="a size of -1",
    ),
    pytest.param(
        f"inputs: {{x: {{shape: [batch, 5]}}}}\nlayers:\n  {FC} #!\n",
        "layers.fc",
        "fc(x)",
        "fc.weight (4, 4)",
        id="an input that does not fit",
    ),
    # forward
    pytest.param(forward("return fc(y) #!"), "forward", "unknown name 'y'", "known", id="a name that is not there"),
    pytest.param(forward("x = fc(x)\nreturn self.fc(x) #!"), "forward", "self", "write fc by its own name", id="self"),
    pytest.param(
        forward("x = fc(x)\nx = F.relu(x) #!\nreturn x"),
        "forward",
        "F",
        "write relu by its own name",
        id="F. before a function",
    ),
    pytest.param(
        forward("x = torch.relu(x) #!\nreturn x"),
        "forward",
        "torch",
        "write relu by its own name",
        id="torch. before a function",
    ),
    pytest.param(forward("x = fc(x)\nx = reul(x) #!\nreturn x"), "forward", "'reul'", "'relu'", id="relu misspelt"),
    pytest.param(forward("x = fc(x)\nprint(x) #!\nreturn x"), "forward", "bare expression", "allowed", id="print"),
    pytest.param(forward("x = x.cuda() #!\nreturn x"), "forward", "'cuda'", "known", id="a move to a device"),
    pytest.param(forward("x = x.numpy() #!\nreturn x"), "forward", "'numpy'", "known", id="numpy"),
    pytest.param(forward("y = x.item() #!\nreturn x"), "forward", "'item'", "known", id="item"),
    pytest.param(
        forward("x += fc(x)\nx.add_(1) #!\nreturn x"), "forward", "bare expression", "assignment", id="in place"
    ),
    pytest.param(forward("x[0] = 1 #!\nreturn x"), "forward", "index", "where", id="assignment to an index"),
    pytest.param(
        forward("if x.sum() > 0: #!\n    x = fc(x)\nreturn x"), "forward", "tensor", "where", id="if on a tensor"
    ),
    pytest.param(forward("while True: #!\n    x = fc(x)\nreturn x"), "forward", "While", "for", id="while"),
    pytest.param(forward("import math #!\nreturn x"), "forward", "Import", "allowed", id="import"),
    pytest.param(forward("def f(x): #!\n    return x\nreturn f(x)"), "forward", "FunctionDef", "allowed", id="def"),
    pytest.param(forward("f = lambda y: y #!\nreturn f(x)"), "forward", "lambda", "allowed", id="lambda"),
    pytest.param(
        forward("for layer in fc: #!\n    x = layer(x)\nreturn x"),
        "forward",
        "not iterable",
        "fc.weight",
        id="a loop over one layer",
    ),
    pytest.param(forward("x = fc(x) #!"), "forward", "returns nothing", "return", id="no return"),
    pytest.param(forward("x = fc(x #!\nreturn x"), "forward", "never closed", "Python", id="a bracket that stays open"),
    pytest.param(forward("x = fc(x)\n return x #!"), "forward", "indent", "Python", id="an indent too much"),
    pytest.param(
        forward("x = fc(x, x) #!\nreturn x"), "forward", "self.fc(x, x)", "fc.weight", id="an argument too many"
    ),
    pytest.param(
        forward("x = fc(x.T) #!\nreturn x"), "forward", "self.fc(x.T)", "fc.weight (4, 4)", id="the wrong way round"
    ),
    pytest.param(
        forward("x = fc(x)\nx = x.view(-1, 3) #!\nreturn x"), "forward", "view", "shapes", id="a view that does not fit"
    ),
    pytest.param(forward("x = x @ fc.wieght #!\nreturn x"), "forward", "wieght", "weight", id="a parameter misspelt"),
    pytest.param(forward("return 3 #!"), "forward", "int", "tensor", id="a number as output"),
    pytest.param(forward("x = dropout(x) #!\nreturn x"), "forward", "training", "training", id="dropout in eval mode"),
    pytest.param(forward("x = relu6(x, inplace=True) #!\nreturn x"), "forward", "inplace", "returns", id="inplace"),
    pytest.param(forward("fc = x #!\nreturn fc"), "forward", "layer", "another name", id="a layer overwritten"),
    pytest.param(forward("x = fc(x).relu_() #!\nreturn x"), "forward", "relu_", "'relu'", id="a method in place"),
    pytest.param(
        forward("y = [a for a in x]\nreturn x + z #!"), "forward", "'z'", "known", id="a name of nothing in a sum"
    ),
    # blocks
    pytest.param(
        "blocks:\n  MLP: #!\n    layers: {fc: {kind: Linear, in_features: 4, out_features: 4}}\n"
        + layers("m: {kind: MLP}"),
        "blocks.MLP.forward",
        "need one input, not 0",
        "forward",
        id="a block without inputs",
    ),
    pytest.param(
        "blocks:\n  MLP:\n    args: [d]\n    inputs: [x]\n    layers:\n"
        "      fc: {kind: Linear, in_features: =d, out_features: =h} #!\n" + layers("m: {kind: MLP, d: 4}"),
        "blocks.MLP.layers.fc.out_features",
        "unknown name 'h'",
        "known",
        id="an arg that a block does not have",
    ),
    pytest.param(
        "blocks:\n  MLP:\n    args: [d]\n    inputs: [x]\n    layers:\n"
        "      fc: {kind: Linear, in_features: =d, out_features: =d}\n" + layers("m: {kind: MLP} #!"),
        "layers.m",
        "needs 'd'",
        "give d",
        id="a block without its arg",
    ),
    pytest.param(
        "blocks:\n  MLP:\n    args: [d]\n    inputs: [x]\n    layers:\n"
        "      fc: {kind: Linear, in_features: =d, out_features: =d}\n" + layers("m: {kind: Mlp, d: 4} #!"),
        "layers.m.kind",
        "unknown kind",
        "'MLP'",
        id="a block's name misspelt",
    ),
    pytest.param(
        "blocks:\n  A:\n    inputs: [x]\n    layers:\n      b: {kind: A} #!\n" + layers("a: {kind: A}"),
        "blocks.A.layers.b",
        "contains itself",
        "repeat",
        id="a block within itself",
    ),
    pytest.param(
        "blocks:\n  MLP:\n    inputs: [x]\n    layers: {fc: {kind: Linear, in_features: 3, out_features: 4}}\n"
        "    forward: |\n      y = x\n      return fc(y) #!\n" + layers("m: {kind: MLP}"),
        "blocks.MLP.forward",
        "self.fc(y)",
        "(4, 3)",
        id="shapes that do not fit within a block",
    ),
]


@pytest.mark.parametrize(("text", "address", "cause", "remedy"), FILES)
def test_wrong_model_file_is_refused_with_address_line_and_remedy(tmp_path, text, address, cause, remedy):
    file = tmp_path / "m.yaml"
    file.write_text(text)
    marked = [number for number, line in enumerate(text.splitlines(), 1) if "#!" in line]
    with pytest.raises(builder.BuilderError) as caught:
        builder.prove(file)
    said = str(caught.value)
    found = {problem.address: problem for problem in caught.value.problems}
    assert address in found, said
    assert [found[address].place] == [f"m.yaml:{line}" for line in marked], said
    assert cause in found[address].what, said
    assert found[address].hint and remedy in found[address].hint, said
