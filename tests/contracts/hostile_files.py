"""Model files that try to run code, to read what is not theirs, or to use up time and memory.

`python hostile_files.py` proves each of them under an audit hook (PEP 578) and prints, as JSON, what the process did
meanwhile: modules that were imported, files that were opened, code that was executed, processes that were started.
"""

import json
import resource
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

FC = "fc: {kind: Linear, in_features: 4, out_features: 4}"
HEAD = f"inputs: {{x: {{shape: [batch, 4]}}}}\nlayers: {{{FC}}}\n"
PLAIN = HEAD + "forward: fc(x)\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def forward(text):
    return HEAD + "forward: |\n" + "".join(f"  {line}\n" for line in text.splitlines())


def value(text):
    """An expression as an argument of a layer."""
    return (
        f"args: {{d: 4}}\nlayers:\n  fc:\n    kind: Linear\n    out_features: 4\n    in_features: {json.dumps(text)}\n"
    )


def buffer(text):
    return HEAD + f"buffers:\n  b:\n    value: {json.dumps(text)}\nforward: fc(x) + b\n"


def kind(text):
    return f"inputs: {{x: {{shape: [batch, 4]}}}}\nlayers: {{a: {{kind: {json.dumps(text)}}}}}\n"


def shape(text):
    raw = f"{{kind: Parameter, shape: {text}, init: zeros}}"
    return f"inputs: {{x: {{shape: [batch, 4]}}}}\nlayers: {{w: {raw}}}\nforward: x\n"


FILES = {
    # the way from an object to its class, and to everything
    "class of a tensor": forward("return x.__class__"),
    "subclasses": forward("return x.__class__.__base__.__subclasses__()[0]"),
    "mro": forward("return x.__class__.__mro__[1]"),
    "globals of a method": forward("return x.sum.__globals__['os']"),
    "globals of a layer": forward("return fc.forward.__globals__"),
    "dict of a layer": forward("return fc.__dict__"),
    "builtins": forward("return __builtins__['eval']('1')"),
    "import by its function": forward("return __import__('os').system('id')"),
    "code of a function": forward("return relu.__code__"),
    "loader": forward("return __loader__.load_module('os')"),
    "spec": forward("return __spec__"),
    "reduce": forward("return x.__reduce_ex__(4)"),
    "getattribute": forward("return x.__getattribute__('data')"),
    "private attribute": forward("return fc._parameters"),
    "private method": forward("return x._backward_hooks"),
    "private keyword": forward("return relu(x, _stacklevel=3)"),
    "class of an arg": value("=d.__class__"),
    "class of a number": value("=(1).__class__"),
    "class of a text": value("=''.__class__.__mro__"),
    "class in a buffer": buffer("=zeros(2).__class__"),
    # formats
    "format of a text": forward("return '{0.__class__}'.format(x)"),
    "format of an arg": value("='{0.__class__.__init__.__globals__}'.format(d)"),
    "format_map": value("='{d}'.format_map({'d': d})"),
    "an f-string": forward("return f'{x.__class__}'"),
    "a percent format": value("='%999999999d' % d"),
    "a wide percent format": value("='%*d' % (10**9, d)"),
    "join": value("=','.join(['a', 'b'])"),
    # functions by name
    "getattr": forward("return getattr(x, 'data')"),
    "getattr in an expression": value("=getattr(d, 'real')"),
    "setattr": forward("return setattr(fc, 'weight', x)"),
    "delattr": forward("return delattr(fc, 'weight')"),
    "hasattr": forward("return hasattr(fc, 'weight')"),
    "vars": forward("return vars(fc)"),
    "dir": value("=dir(d)"),
    "type": value("=type(d)"),
    "globals": forward("return globals()"),
    "locals": forward("return locals()"),
    "eval": value("=eval('1')"),
    "exec": forward("return exec('import os')"),
    "compile": value("=compile('1', 'a', 'eval')"),
    "open": value("=open('/etc/passwd').read()"),
    "open in forward": forward("return open('/etc/passwd')"),
    "input": value("=input()"),
    "breakpoint": forward("return breakpoint()"),
    "exit": value("=exit()"),
    "print": forward("return print(x)"),
    "map": value("=map(eval, ['1'])"),
    "super": forward("return super().forward(x)"),
    "load of torch": forward("return load('weights.pt')"),
    "torch by name": forward("return torch.load('weights.pt')"),
    "torch.ops": forward("return torch.ops.load_library('a.so')"),
    "save": forward("return save(x, 'a.pt')"),
    "from_file": forward("return from_file('/etc/passwd', size=4)"),
    "a method that writes": forward("return x.tofile('a')"),
    "numpy": forward("return x.numpy().tofile('a')"),
    "storage": forward("return x.untyped_storage()"),
    "data_ptr": forward("return x.data_ptr()"),
    "apply": forward("return fc.apply(relu)"),
    "hook": forward("return fc.register_forward_hook(relu)"),
    "compile of a layer": forward("return fc.compile(backend='os')"),
    "in place of a weight": forward("return fc.weight.zero_()"),
    # statements
    "import": forward("import os\nreturn x"),
    "star-import": forward("from os import *\nreturn x"),
    "import within an expression": value("=[__import__('os') for i in [1]]"),
    "lambda": forward("f = lambda: x\nreturn f()"),
    "lambda in an expression": value("=(lambda: 4)()"),
    "walrus": forward("return (y := x)"),
    "walrus in an expression": value("=(y := 4)"),
    "def": forward("def f():\n    return x\nreturn f()"),
    "decorator": forward("@relu\ndef f(): return x\nreturn f"),
    "class statement": forward("class A: pass\nreturn x"),
    "with": forward("with x: pass\nreturn x"),
    "try": forward("try:\n    y = x\nexcept: y = x\nreturn y"),
    "global": forward("global fc\nreturn x"),
    "assert": forward("assert x\nreturn x"),
    "yield": forward("yield x\nreturn x"),
    "await": forward("return await x"),
    "while": forward("while True: x = x\nreturn x"),
    "del": forward("del fc\nreturn x"),
    "assignment to an attribute": forward("fc.forward = relu\nreturn x"),
    "assignment to self": forward("self = x\nreturn x"),
    "two statements in an expression": value("=4; import os"),
    "a newline in an expression": value("=4\nimport os"),
    "a comment and a newline": value("=4 #\n)\nimport os\n("),
    "a closed docstring": HEAD + 'forward: \'"""); import os; ("""\'\n',
    # names that become source
    "a name that closes a call": "layers: {'x=1); import os; (': {kind: ReLU}}\n",
    "an argument that closes a call": "layers: {a: {kind: ReLU, 'inplace=1); import os; (y': 1}}\n",
    "an input that closes a signature": f"inputs: {{'x): import os #': {{}}}}\nlayers: {{{FC}}}\n",
    "an arg that closes a signature": f"args: {{'d=1): import os #': 4}}\nlayers: {{{FC}}}\n",
    "a block that closes a class": "blocks: {'A: pass\\nimport os\\nclass B': {inputs: [x], forward: x}}\n"
    + kind("ReLU"),
    "a homoglyph": f"layers: {{fс: {{kind: ReLU}}, {FC}}}\nforward: ｆc(x)\n",
    "a name of nn.Module": "layers: {__init__: {kind: ReLU}}\n",
    "a name of every module": "layers: {load_state_dict: {kind: ReLU}}\n",
    "a doc that closes its string": f'doc: \'a"""\\nimport os\\n"""\\\\\'\nlayers: {{{FC}}}\nforward: 3\n',
    # kinds
    "os.system": kind("os.system"),
    "subprocess": kind("subprocess.Popen"),
    "a function of torch": kind("torch.load"),
    "an alias out of torch.nn": kind("torch.nn.modules.module.torch"),
    "modules of torch.nn": kind("torch.nn.modules.linear.math"),
    "a module that imports os": kind("torch.nn.utils.parametrize.copy"),
    "a relative name": kind("..os.system"),
    "a kind with a call": kind("Linear.__init__"),
    "an expression as a kind": kind("=open"),
    "a policy of os": HEAD + "init: {a: {match: '*', policy: os.system}}\n",
    "a policy with a call": HEAD + "init: {a: {match: '*', policy: 'normal()'}}\n",
    "an expression policy": HEAD + "init: {a: {match: '*', policy: expression, value: \"=open('/etc/passwd')\"}}\n",
    # YAML
    "a Python tag": "layers: !!python/object/apply:os.system [id]\n",
    "a Python name": "layers: !!python/name:os.system\n",
    "a Python module": "layers: !!python/module:os\n",
    "a new object": "layers: !!python/object/new:os.system [id]\n",
    "an unknown tag": "layers: !include /etc/passwd\n",
    "a binary": "layers: {fc: {kind: !!binary aGVsbG8=}}\n",
    "a timestamp": "layers: {fc: {kind: 2020-01-01}}\n",
    "an alias bomb": BOMB,
    "an alias of itself": "a: &a {b: *a}\n",
    "a merge bomb": "a: &a {k: 1}\n" + "".join(f"b{i}: &b{i} {{<<: [{', '.join(['*a'] * 50)}]}}\n" for i in range(50)),
    "10,000 lists deep": "layers: " + "[" * 10_000 + "]" * 10_000,
    "10,000 mappings deep": "layers: " + "{a: " * 10_000 + "1" + "}" * 10_000,
    "10,000 indents deep": "".join(f"{' ' * i}a:\n" for i in range(2000)),
    "an endless document": "a: 1\n---\n" * 1000,
    "a null byte": "layers: \0\n",
    "a file too large": "# " + "x" * 5_000_000,
    # resolvers
    "the environment": "args: {a: '${oc.env:HOME}'}\n" + PLAIN,
    "the environment by escapes": 'args: {a: "$\\x7boc.env:HOME}"}\n' + PLAIN,
    "the environment within": "args: {a: '${b.${oc.env:HOME}}'}\n" + PLAIN,
    "a decoded text": "args: {a: '${oc.decode:1}'}\n" + PLAIN,
    "a created node": "args: {a: '${oc.create:{b: 1}}'}\n" + PLAIN,
    "hydra's runtime": "args: {a: '${hydra:runtime.cwd}'}\n" + PLAIN,
    "an interpolation of itself": "args: {a: '${args.a}'}\n" + PLAIN,
    "an interpolation of all": "args: {a: '${layers}', b: '${args}'}\n" + PLAIN,
    # time and memory
    "a tower of powers": value("=10**10**10"),
    "a tower in forward": forward("return x * 10**10**10"),
    "a product of powers": value("=2**200 * 2**200"),
    "a shift": value("=1 << 10**9"),
    "a huge range": value("=len(range(10**12))"),
    "a loop without end": forward("for i in range(10**12):\n    x = fc(x)\nreturn x"),
    "a comprehension without end": value("=sum([i for i in range(10**9)])"),
    "loops in loops": value("=sum([1 for a in range(9999) for b in range(9999)])"),
    "a gigabyte of text": value("='a' * 10**9"),
    "a gigabyte by doubling": value("='a' * 9999 + 'a' * 9999"),
    "a list of lists": value("=len([[0] * 9999] * 9999)"),
    "factors of a list": value("=len(10**9 * [0])"),
    "a sum of lists": value("=len(sum([[0] * 100 for a in range(10000)], []))"),
    "rounding": value("=round(5, -10**9)"),
    "a deep expression": value("=" + "(" * 5000 + "1" + ")" * 5000),
    "a deep sum": value("=" + "+".join(["1"] * 5000)),
    "a long expression": value("=" + "1" * 30_000),
    "a shape of 10**15": shape("[1000000, 1000000000]"),
    "a shape of 10**30": shape("[1000000000000000, 1000000000000000]"),
    "a huge Linear": "layers: {fc: {kind: Linear, in_features: 100000000, out_features: 100000000}}\n",
    "a buffer of 10**12": buffer("=zeros(10**12)"),
    "a buffer of 10**12 by arange": buffer("=arange(10**12)"),
    "a buffer by outer products": buffer("=ones(10**6).outer(ones(10**6))"),
    "an eye of 10**6": buffer("=eye(10**6)"),
    "a billion layers": "layers: {a: {kind: ReLU, repeat: 1000000000}}\n",
    "blocks of blocks": "blocks:\n"
    + "".join(
        f"  B{i}: {{inputs: [x], layers: {{a: {{kind: {'ReLU' if i == 0 else f'B{i - 1}'}, repeat: 100}}}}}}\n"
        for i in range(6)
    )
    + "layers: {b: {kind: B5}}\n",
    "a block within itself": "blocks: {A: {inputs: [x], layers: {a: {kind: A, repeat: 9}}}}\nlayers: {a: {kind: A}}\n",
    "150,000 keys": "args: {" + ", ".join(f"a{i}: 1" for i in range(150_000)) + "}\n" + PLAIN,
    "input of 10**15": "inputs: {x: {shape: [1000000000, 1000000]}}\n" + PLAIN.partition("\n")[2],
}


# Written in the language, and refused for what the constructed module on meta would hold, or for one of its rules.
CONSTRUCTED = (
    "a policy of os",
    "a huge Linear",
    "a buffer of 10**12",
    "a buffer of 10**12 by arange",
    "a buffer by outer products",
    "an eye of 10**6",
    "input of 10**15",
)


def watched(prove, refusal):
    """What happened while each file was proved: its error, its seconds and megabytes, and the events of the hook."""
    events = []
    told = ("import", "open", "exec", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pickle.", "marshal.")
    watching = False

    def hook(event, arguments):
        if watching and event.startswith(told):
            events.append(f"{event} {str(arguments[0])[:200]}" if arguments else event)

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.yaml"
        sys.addaudithook(hook)
        for name, text in {"a plain model": PLAIN, **FILES}.items():
            file.write_text(text, encoding="utf-8")
            events.clear()
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            watching = True
            try:
                prove(file)
                said = None
            except refusal as err:
                said = str(err)
            except BaseException as err:  # anything else is told to the test
                said = None
                events.append(f"raised {type(err).__name__}: {err}")
            watching = False
            seconds = time.process_time() - start
            megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            done = [event for event in events if event != f"open {file}"]
            found[name] = {"said": said, "seconds": seconds, "megabytes": megabytes, "events": done}
    return found


def main():
    import builder

    shapes = "inputs: {x: {shape: [batch, 3]}}\n" + PLAIN.partition("\n")[2]
    with tempfile.TemporaryDirectory() as folder:  # what is imported at the first use, and for a first error
        for number, text in enumerate([PLAIN, buffer("=zeros(2)"), shapes, FILES["the environment within"]]):
            (Path(folder) / f"{number}.yaml").write_text(text)
            with suppress(builder.BuilderError):
                builder.prove(Path(folder) / f"{number}.yaml")
    print(json.dumps(watched(builder.prove, builder.BuilderError)))


if __name__ == "__main__":
    main()
