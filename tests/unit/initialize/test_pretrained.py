"""The policy `pretrained`: which keys a rule takes from a file, what it writes, and what it refuses."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import builder
from builder.initialize.pretrained import PretrainedReport, captures, check, merged, resolve
from builder.initialize.pretrained_values import PIECE, fill

A = torch.arange(12.0).reshape(4, 3)
AT = "init.bert"


def entries(**shapes):
    return [SimpleNamespace(name=name.replace("__", "."), shape=shape) for name, shape in shapes.items()]


def resolved(shapes, patterns=("*",), **arguments):
    return resolve(arguments, entries(**shapes), patterns, AT)


def values(shape, patterns=("*",), dtype=torch.float32, name="w", **arguments):
    """What a rule writes into one parameter, given to it whole and in pieces of several sizes."""
    found = resolve(arguments, [SimpleNamespace(name=name, shape=shape)], patterns, AT)
    assert found.problems == ()
    filled = fill(found.arguments[name], shape)
    whole = torch.full(shape, 7, dtype=dtype)
    filled.draw(whole, None, 0)
    for size in (1, 2, 5) if not filled.whole else ():
        pieces = torch.full(shape, 7, dtype=dtype)
        for start in range(0, pieces.numel(), size):
            filled.draw(pieces.view(-1)[start : start + size], None, start)
        assert torch.equal(pieces, whole)
    return whole


def refused(shapes, patterns=("*",), **arguments):
    problems = resolved(shapes, patterns, **arguments).problems
    assert len(problems) == 1, problems
    return problems[0]


@pytest.fixture
def file(tmp_path):
    """Writes tensors and gives their path."""

    def write(name="m.safetensors", **tensors):
        save_file(
            {
                key.replace("__", "."): tensor.clone(memory_format=torch.contiguous_format)
                for key, tensor in tensors.items()
            },
            tmp_path / name,
        )
        return str(tmp_path / name)

    return write


@pytest.fixture
def words(tmp_path):
    def write(name, *lines):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        return str(tmp_path / name)

    return write


# ---- which keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern, name, stars",
    [
        pytest.param("h.*.weight", "h.0.weight", ("0",), id="one star"),
        pytest.param("h.*.*.weight", "h.0.attn.qkv.weight", ("0", "attn.qkv"), id="the last takes what is left"),
        pytest.param("*.weight", "a.weight.weight", ("a.weight",), id="a star that could end early"),
        pytest.param("h.?.*", "h.0.weight", ("weight",), id="a question mark is none"),
        pytest.param("h.[*0]*.w", "h.01.w", ("1",), id="a star in brackets is none"),
        pytest.param("h.[!]1]*", "h.0x", ("x",), id="a bracket in brackets"),
        pytest.param("wte", "wte", (), id="no star"),
        pytest.param("a+b.*", "a+b.c", ("c",), id="signs that mean something elsewhere"),
    ],
)
def test_a_star_of_a_glob_stands_for_a_part_of_the_name(pattern, name, stars):
    assert captures(name, ["nothing", pattern]) == stars


def test_stars_are_found_without_backtracking():
    assert len(captures("a" * 400 + "b", ["*a" * 40 + "*b"])) == 41


def test_key_is_a_template_over_name_and_stars(file):
    path = file(**{f"bert__layer__{i}__w": A + i for i in range(2)})
    found = resolved({"h__0__w": (4, 3), "h__1__w": (4, 3)}, ["x.*", "h.*.*"], path=path, key="bert.layer.{1}.{2}")
    assert found.problems == ()
    assert found.report == PretrainedReport(path, {"h.0.w": ("bert.layer.0.w",), "h.1.w": ("bert.layer.1.w",)}, (), ())
    part = torch.empty(4, 3)
    fill(found.arguments["h.1.w"], (4, 3)).draw(part, None, 0)
    assert torch.equal(part, A + 1)


def test_key_is_the_name_unless_it_is_given(file):
    assert torch.equal(values((4, 3), name="h.w", path=file(h__w=A)), A)
    assert torch.equal(values((4, 3), path=file(x__w=A), key="x.{name}"), A)


def test_file_of_one_array_needs_no_key(tmp_path, words):
    np.save(tmp_path / "a.npy", A.numpy())
    assert torch.equal(values((4, 3), path=str(tmp_path / "a.npy")), A)
    vectors = words("v.vec", *(f"{i} {' '.join(map(str, row))}" for i, row in enumerate(A.tolist())))
    assert torch.equal(values((4, 3), path=vectors), A)


def test_report_names_the_keys_that_no_parameter_took(file):
    report = resolved({"a": (4, 3)}, path=file(a=A, pooler=A, steps=A)).report
    assert sorted(report.unexpected) == ["pooler", "steps"]


def test_reports_of_one_file_come_together(file):
    path = file(a=A, b=A, c=A)
    one = resolved({"a": (4, 3), "b": (4, 3)}, path=path, key="{name}").report
    two = resolved({"x": (4, 3), "y": (4, 3)}, path=path, key="c").report
    other = resolved({"a": (4, 3)}, path=file("n.safetensors", a=A)).report
    assert merged([one, two, other]) == [
        PretrainedReport(path, {"a": ("a",), "b": ("b",), "x": ("c",), "y": ("c",)}, (), ()),
        other,
    ]


# ---- which values ----------------------------------------------------------------------------------------------------


def test_a_list_of_keys_is_joined_along_the_first_axis(file):
    path = file(q=A, k=A + 100, v=A[:1] + 200)
    assert torch.equal(values((9, 3), path=path, key=["q", "k", "v"]), torch.cat([A, A + 100, A[:1] + 200]))


def test_a_list_of_keys_is_joined_along_dim(file):
    path = file(q=A, k=A[:, :2] + 100)
    assert torch.equal(values((4, 5), path=path, key=["q", "k"], dim=1), torch.cat([A, A[:, :2] + 100], 1))


def test_a_list_of_keys_is_transposed_before_it_is_joined(file):
    path = file(q=A.T, k=A.T + 100)
    assert torch.equal(values((8, 3), path=path, key=["q", "k"], transpose=True), torch.cat([A, A + 100]))


def test_transpose_turns_a_matrix(file):
    assert torch.equal(values((3, 4), path=file(w=A), transpose=True), A.T)


def test_vectors_scalars_and_large_tensors_are_copied(file):
    large = torch.arange(2.0 * PIECE + 3)
    assert torch.equal(values((4,), path=file(w=A[:, 0])), A[:, 0])
    assert values((), path=file(w=torch.tensor(2.5))).item() == 2.5
    found = resolved({"w": tuple(large.shape)}, path=file(w=large)).arguments["w"]
    part = torch.empty_like(large)
    fill(found, large.shape).draw(part, None, 0)
    assert torch.equal(part, large)


def test_compressed_array_is_filled_whole(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", w=A.numpy())
    found = resolved({"w": (4, 3)}, path=str(tmp_path / "a.npz")).arguments["w"]
    assert fill(found, (4, 3)).whole
    assert torch.equal(values((4, 3), path=str(tmp_path / "a.npz")), A)


def test_rows_take_a_range(file):
    assert torch.equal(values((2, 3), path=file(w=A), rows=[1, 3]), A[1:3])
    assert torch.equal(values((2, 4), path=file(w=A), rows=[1, 3], transpose=True), A.T[1:3])


def test_rows_of_a_tensor_are_found_by_word(file, words):
    rows = {"vocabulary": words("mine.txt", "c", "a", "c"), "source": words("theirs.txt", "a", "b", "c", "a")}
    assert torch.equal(values((3, 3), path=file(w=A), rows=rows), A[[2, 0, 2]])


def test_rows_of_word_vectors_are_found_by_their_own_words(words):
    path = words("v.vec", "3 2", "a 1 2", "b 3 4", "c d 5 6")
    rows = {"vocabulary": words("mine.txt", "c d", "a")}
    assert values((2, 2), path=path, rows=rows).tolist() == [[5, 6], [1, 2]]
    assert values((2, 3), path=path, transpose=True).tolist() == [[1, 3, 5], [2, 4, 6]]
    turned = resolved({"w": (2, 3)}, path=path, transpose=True).arguments["w"]
    assert fill(turned, (2, 3)).whole, "a part would parse every line"


def test_absent_words_become_zeros_where_the_rule_says_so(file, words):
    rows = {
        "vocabulary": words("mine.txt", "x", "b"),
        "source": words("theirs.txt", "a", "b", "c", "d"),
        "absent": "zeros",
    }
    path = file(w=A + 1)
    assert torch.equal(values((2, 3), path=path, rows=rows), torch.stack([torch.zeros(3), A[1] + 1]))
    assert torch.equal(builder_read(path), A + 1), "the file is as it was"


def builder_read(path):
    from safetensors.torch import load_file

    return load_file(path)["w"]


def test_paths_begin_at_the_working_directory_or_at_home(file, words, tmp_path, monkeypatch):
    file(w=A)
    words("mine.txt", "b")
    words("theirs.txt", "a", "b", "c", "d")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert torch.equal(values((4, 3), path="~/m.safetensors"), A)
    monkeypatch.chdir(tmp_path)
    rows = {"vocabulary": "mine.txt", "source": "theirs.txt"}
    found = resolved({"w": (1, 3)}, path="m.safetensors", rows=rows).arguments["w"]
    monkeypatch.chdir("/")
    part = torch.empty(1, 3)
    fill(found, (1, 3)).draw(part, None, 0)
    assert torch.equal(part, A[1:2])


# ---- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, dtype",
    [
        pytest.param(torch.tensor([0.1, -2e38], dtype=torch.float64), torch.float32, id="float64 is rounded"),
        pytest.param(torch.tensor([0.1, float("inf"), float("nan")]), torch.float16, id="what is not finite stays so"),
        pytest.param(torch.tensor([0.1, 3e38]), torch.bfloat16, id="float32 is rounded to bfloat16"),
        pytest.param(torch.tensor([1.5, 448]).to(torch.float8_e4m3fn), torch.float32, id="float8 is widened"),
        pytest.param(torch.tensor([1, 2**24]), torch.float32, id="whole numbers that a float holds"),
        pytest.param(torch.tensor([3.0, -4.0]), torch.int8, id="whole floats to integers"),
        pytest.param(torch.tensor([True, False]), torch.float32, id="bools are ones and zeros"),
        pytest.param(torch.tensor([1, 2]), torch.complex64, id="integers to complex"),
        pytest.param(torch.tensor([1.5, 2]), torch.complex64, id="floats to complex"),
    ],
)
def test_values_come_in_the_dtype_of_the_parameter(source, dtype, file):
    got = (
        values(tuple(source.shape), dtype=dtype, path=file(w=source)) if not torch.isnan(source.float()).any() else None
    )
    if got is None:
        part = torch.empty(source.shape, dtype=dtype)
        fill(resolved({"w": tuple(source.shape)}, path=file(w=source)).arguments["w"], source.shape).draw(part, None, 0)
        got = part
    assert torch.equal(torch.nan_to_num(got), torch.nan_to_num(source.to(dtype)))


@pytest.mark.parametrize(
    "source, dtype, place",
    [
        pytest.param(
            [[1, 2], [3, 70000.0]], torch.float16, "[1, 1] is 70000.0 in float32, which float16", id="float16"
        ),
        pytest.param([[1, 1e39]], torch.float32, "[0, 1] is 1e+39 in float64, which float32", id="float32"),
        pytest.param([[1, 2], [300, 4]], torch.int8, "[1, 0] is 300 in int64, which int8", id="int8"),
        pytest.param(
            [[1, 2**24 + 1]], torch.float32, "[0, 1] is 16777217 in int64", id="an integer between two floats"
        ),
        pytest.param([[1, 1.5]], torch.int32, "[0, 1] is 1.5 in float32, which int32", id="a fraction"),
        pytest.param([[1, float("nan")]], torch.int32, "[0, 1] is nan in float32", id="no number"),
        pytest.param([[1, 1j]], torch.float32, "has complex64, the parameter float32", id="an imaginary part"),
    ],
)
def test_value_that_the_dtype_cannot_hold_is_refused_by_name_and_place(source, dtype, place, file):
    tensor = torch.tensor(source, dtype=torch.float64 if source == [[1, 1e39]] else None)
    shape = tuple(tensor.shape)
    found = resolved({"h__w": shape}, path=file(h__w=tensor)).arguments["h.w"]
    last = torch.empty(2, dtype=dtype)
    with pytest.raises(builder.BuilderError) as caught:
        fill(found, shape).draw(last, None, tensor.numel() - 2)
    (problem,) = caught.value.problems
    assert problem.address == AT
    assert problem.what.startswith("'h.w': ")
    assert place in problem.what
    assert "wider dtype" in problem.hint or "real part" in problem.hint


# ---- what is refused -------------------------------------------------------------------------------------------------

RULES = [
    pytest.param({}, ".path", "got None", "the file's path", id="no path"),
    pytest.param({"path": 3}, ".path", "got 3", "the file's path", id="a path that is a number"),
    pytest.param({"pth": "x"}, ".pth", "no argument 'pth'", "did you mean 'path'", id="an unknown argument"),
    pytest.param({"key": 3}, ".key", "got 3", "{name}", id="a key that is a number"),
    pytest.param({"key": []}, ".key", "got []", "{name}", id="no keys"),
    pytest.param({"key": ["a", 3]}, ".key", "got ['a', 3]", "{name}", id="a key in a list that is a number"),
    pytest.param({"key": "x.{nme}"}, ".key", "unknown field '{nme}'", "{name} is", id="an unknown field"),
    pytest.param({"key": "{name.__class__}"}, ".key", "unknown field", "{name} is", id="an attribute of a field"),
    pytest.param({"key": "x.{0}"}, ".key", "unknown field '{0}'", "{1}", id="a star before the first"),
    pytest.param({"key": "x.{}"}, ".key", "unknown field '{}'", "{1}", id="a field without a name"),
    pytest.param({"dim": -1}, ".dim", "got -1", "joined", id="a negative dim"),
    pytest.param({"dim": True}, ".dim", "got True", "joined", id="a dim that is a bool"),
    pytest.param({"dim": 1}, ".dim", "nothing to be joined to", "list of keys", id="a dim for one key"),
    pytest.param({"transpose": "yes"}, ".transpose", "got 'yes'", "true", id="transpose in words"),
    pytest.param({"missing": "ignore"}, ".missing", "got 'ignore'", "refuse or skip", id="an unknown word for missing"),
    pytest.param({"rows": [3, 1]}, ".rows", "got [3, 1]", "[LOW, HIGH]", id="rows that run backwards"),
    pytest.param({"rows": [0, 1.5]}, ".rows", "got [0, 1.5]", "[LOW, HIGH]", id="rows in fractions"),
    pytest.param({"rows": 5}, ".rows", "got 5", "[LOW, HIGH]", id="rows that are a number"),
    pytest.param({"rows": [0, 1], "key": ["a", "b"]}, ".rows", "several keys", "one key", id="rows of several keys"),
    pytest.param({"rows": {}}, ".rows", "got {}", "vocabulary", id="rows that say nothing"),
    pytest.param(
        {"rows": {"vocab": "x", "vocabulary": "y"}},
        ".rows.vocab",
        "no key 'vocab'",
        "vocabulary",
        id="an unknown key of rows",
    ),
    pytest.param(
        {"rows": {"vocabulary": "x", "source": 3}}, ".rows", "got {", "source: FILE", id="a source that is a number"
    ),
    pytest.param(
        {"rows": {"vocabulary": "x", "absent": "random"}},
        ".rows.absent",
        "got 'random'",
        "zeros",
        id="another word for absent",
    ),
]


@pytest.mark.parametrize("arguments, where, what, hint", RULES)
def test_wrong_argument_is_refused_without_a_look_at_the_file(arguments, where, what, hint):
    given = arguments if not arguments or "pth" in arguments else {"path": "nowhere.pt", **arguments}
    problem = next(p for p in check(given, AT) if p.address == AT + where)
    assert what in problem.what
    assert hint in problem.hint
    assert resolve(given, entries(w=(4, 3)), ["*"], AT).problems == tuple(check(given, AT))


def test_right_arguments_are_not_refused():
    assert (
        check(
            {"path": "x", "key": ["{name}", "{12}"], "dim": 1, "transpose": True, "rows": None, "missing": "skip"}, AT
        )
        == []
    )
    assert check({"path": "x", "key": None, "rows": {"vocabulary": "a", "source": "b", "absent": "refuse"}}, AT) == []


def test_file_that_is_not_there_is_refused_at_path(file):
    problem = refused({"w": (4, 3)}, path=file(w=A).replace("m.safe", "n.safe"))
    assert problem.address == "init.bert.path"
    assert "no such file" in problem.what
    assert "did you mean 'm.safetensors'" in problem.hint


def test_rule_of_which_nothing_matched_is_refused_with_the_nearest_keys(file):
    for missing in ("refuse", "skip"):
        problem = refused({"h__0__w": (4, 3), "h__1__w": (4, 3)}, path=file(bert__h__0__w=A), missing=missing)
        assert problem.address == "init.bert.key"
        assert problem.what == "nothing matched: m.safetensors has none of the keys of 2 parameters"
        assert "h.0.w: no 'h.0.w'; did you mean 'bert.h.0.w'?" in problem.hint
        assert "m.safetensors has: 'bert.h.0.w' (1 keys)" in problem.hint
        assert 'key: "PREFIX.{name}"' in problem.hint


def test_keys_that_the_file_lacks_are_all_listed(file):
    shapes = {"a": (4, 3), **{f"head{i}": (4, 3) for i in range(20)}}
    problem = refused(shapes, path=file(a=A, head=A))
    assert problem.address == "init.bert.key"
    assert problem.what == "m.safetensors lacks the keys of 20 parameters"
    assert "head0: no 'head0'; did you mean 'head'?" in problem.hint
    assert "head19: no 'head19'" in problem.hint
    assert "missing: skip" in problem.hint


def test_parameters_that_the_file_lacks_may_be_skipped(file):
    found = resolved({"a": (4, 3), "head": (4, 3)}, path=file(a=A), missing="skip")
    assert found.problems == ()
    assert list(found.arguments) == ["a"]
    assert found.report.missing == ("head",)


@pytest.mark.parametrize(
    "patterns, count",
    [(["h.0.w"], "no `*`"), (["h.*"], "1 `*`"), ([], "no `*`")],
    ids=["no star", "one star", "inline"],
)
def test_star_that_the_glob_has_not_is_refused(patterns, count, file):
    problem = refused({"h__0__w": (4, 3)}, patterns, path=file(w=A), key="{2}")
    assert problem.address == "init.bert.key"
    assert f"{{2}} stands for nothing: the glob that matches 'h.0.w' has {count}" == problem.what
    assert "as many" in problem.hint


SHAPES = [
    pytest.param(
        {"w": A}, (3, 4), {}, "'w' has shape (3, 4); 'w' has (4, 3)", "transpose: true would fit", id="turned"
    ),
    pytest.param(
        {"w": A}, (4, 3), {"transpose": True}, "'w' has (4, 3)", "transpose: false would fit", id="turned for nothing"
    ),
    pytest.param({"w": A[0]}, (1, 3), {"transpose": True}, "'w' has (3,)", "another key", id="a vector that is turned"),
    pytest.param({"w": A}, (2, 3), {}, "'w' has (4, 3)", "rows: [LOW, HIGH]", id="more rows"),
    pytest.param(
        {"w": A}, (2, 3), {"rows": [0, 3]}, "'w' has (4, 3), which comes to (3, 3)", "rows: [LOW", id="too many rows"
    ),
    pytest.param({"w": A}, (2, 3), {"rows": [3, 5]}, "'w' has (4, 3)", "rows: [LOW", id="rows beyond the last"),
    pytest.param(
        {"q": A, "k": A},
        (9, 3),
        {"key": ["q", "k"]},
        "'q', 'k' has (4, 3) and (4, 3), which comes to (8, 3)",
        "dim: 0",
        id="joined to another",
    ),
    pytest.param(
        {"q": A, "k": A.T},
        (7, 3),
        {"key": ["q", "k"]},
        "(4, 3) and (3, 4)",
        "differ in no axis but dim",
        id="not to be joined",
    ),
    pytest.param(
        {"q": A, "k": A},
        (4, 6),
        {"key": ["q", "k"], "dim": 2},
        "(4, 3) and (4, 3)",
        "dim: 0 is the first",
        id="joined along no axis",
    ),
    pytest.param(
        {"q": A, "k": A},
        (9, 4),
        {"key": ["q", "k"], "dim": 0},
        "comes to (8, 3)",
        "differ",
        id="joined along the wrong axis",
    ),
]


@pytest.mark.parametrize("tensors, shape, arguments, what, hint", SHAPES)
def test_shape_that_does_not_fit_is_refused_with_both_shapes(tensors, shape, arguments, what, hint, file):
    problem = refused({"w": shape}, path=file(**tensors), **arguments)
    assert problem.address == AT
    assert what in problem.what
    assert hint in problem.hint


def test_file_without_keys_is_called_by_its_name(tmp_path):
    np.save(tmp_path / "a.npy", A.numpy())
    assert "a.npy has (4, 3)" in refused({"w": (5, 3)}, path=str(tmp_path / "a.npy")).what


def test_dtype_that_torch_has_not_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3, dtype="U5"))
    problem = refused({"w": (3,)}, path=str(tmp_path / "a.npy"))
    assert "dtype that torch cannot read" in problem.what
    assert "float32" in problem.hint


def test_absent_words_are_counted_and_the_first_are_named(file, words):
    rows = {"vocabulary": words("mine.txt", "a", *"uvwxyz"), "source": words("theirs.txt", "a", "b", "c", "d")}
    problem = refused({"w": (7, 3)}, path=file(w=A), rows=rows)
    assert problem.address == "init.bert.rows.vocabulary"
    assert problem.what == "6 of 7 words are absent from the source: 'u', 'v', 'w', 'x', 'y', ..."
    assert "absent: zeros" in problem.hint


def test_source_with_another_number_of_words_is_refused(file, words):
    rows = {"vocabulary": words("mine.txt", "a"), "source": words("theirs.txt", "a", "b")}
    problem = refused({"w": (1, 3)}, path=file(w=A), rows=rows)
    assert problem.address == "init.bert.rows.source"
    assert "the source has 2 words, and 'w' has shape (4, 3)" in problem.what
    assert "made with" in problem.hint


def test_vocabulary_of_another_length_is_refused_with_both_shapes(file, words):
    rows = {"vocabulary": words("mine.txt", "a"), "source": words("theirs.txt", *"abcd")}
    assert (
        "'w' has shape (2, 3); 'w' has (4, 3), which comes to (1, 3)"
        in refused({"w": (2, 3)}, path=file(w=A), rows=rows).what
    )


def test_source_is_needed_by_tensors_and_refused_by_word_vectors(file, words):
    mine = words("mine.txt", "a")
    problem = refused({"w": (1, 3)}, path=file(w=A), rows={"vocabulary": mine})
    assert (problem.address, problem.hint) == ("init.bert.rows.source", "give source: FILE, a word a line")
    problem = refused({"w": (1, 2)}, path=words("v.vec", "a 1 2"), rows={"vocabulary": mine, "source": mine})
    assert problem.address == "init.bert.rows.source"
    assert "brings its own words" in problem.what
    assert "leave source out" in problem.hint


def test_vocabulary_that_is_not_there_names_its_neighbours(file, words):
    mine = words("mine.txt", "a")
    problem = refused({"w": (1, 3)}, path=file(w=A), rows={"vocabulary": mine.replace("mine", "mien"), "source": mine})
    assert problem.address == "init.bert.rows.vocabulary"
    assert "No such file" in problem.what
    assert "did you mean 'mine.txt'" in problem.hint


@pytest.mark.parametrize(
    "again, what",
    [
        pytest.param({"other": A}, "no longer has ['w']", id="another key"),
        pytest.param({"w": A[:2]}, "'w' has shape (4, 3); 'w' has (2, 3)", id="another shape"),
        pytest.param({}, "not a safetensors", id="another format"),
    ],
)
def test_file_that_changed_between_plan_and_fill_is_refused(again, what, file):
    path = file(w=A)
    found = resolved({"w": (4, 3)}, path=path).arguments["w"]
    if again:
        file(**again)
    else:
        Path(path).write_bytes(b"x" * 20)
    os.utime(path, (1, 1))  # a clock may tick more slowly than this test writes
    with pytest.raises(builder.BuilderError, match=re.escape(what)) as caught:
        fill(found, (4, 3))
    assert caught.value.problems[0].address == AT


def test_word_vectors_that_hold_no_number_are_refused_at_the_rule(words):
    found = resolved({"w": (2, 2)}, path=words("v.vec", "a 1 2", "b 1 x")).arguments["w"]
    with pytest.raises(builder.BuilderError, match=r"'w': v\.vec: line 2") as caught:
        fill(found, (2, 2)).draw(torch.empty(4), None, 0)
    assert caught.value.problems[0].address == AT


# ---- in a model ----------------------------------------------------------------------------------------------------


def model(**init):
    layers = {
        "table": {"kind": "Embedding", "num_embeddings": 4, "embedding_dim": 3, "padding_idx": 1},
        "fc": {"kind": "Linear", "in_features": 3, "out_features": 4, "repeat": 2},
    }
    return {"inputs": {"x": {}}, "layers": layers, "forward": "x", "init": init}


@pytest.mark.parametrize("rng", ["keyed", "torch"])
def test_rule_fills_the_parameters_that_it_matches_and_no_other(rng, given, file):
    rule = {"match": "fc.*.weight", "policy": "pretrained", "path": file(x0=A, x1=-A), "key": "x{1}"}
    before = builder.build(given(model(ones={"match": "*", "policy": "ones"})), rng=rng)
    built = builder.build(given(model(ones={"match": "*", "policy": "ones"}, bert=rule)), rng=rng)
    assert torch.equal(built.fc[0].weight, A)
    assert torch.equal(built.fc[1].weight, -A)
    for name in ("table.weight", "fc.0.bias"):
        assert torch.equal(built.get_parameter(name), before.get_parameter(name))


def test_padding_row_comes_as_the_file_has_it(given, file):
    rule = {"match": "table.weight", "policy": "pretrained", "path": file(w=A), "key": "w"}
    assert torch.equal(builder.build(given(model(words=rule))).table.weight, A)


@pytest.mark.parametrize("rng", ["keyed", "torch"])
def test_raw_parameter_may_take_its_values_from_a_file(rng, given, file):
    init = {"policy": "pretrained", "path": file(x__w=A), "key": "x.{name}", "transpose": True}
    data = {"inputs": {"x": {}}, "layers": {"w": {"kind": "Parameter", "shape": [3, 4], "init": init}}, "forward": "x"}
    assert torch.equal(builder.build(given(data), rng=rng).w, A.T)


def test_parameters_that_are_skipped_fall_to_the_rule_below(given, file):
    rule = {"match": "fc.*", "policy": "pretrained", "path": file(fc__1__weight=A), "missing": "skip"}
    built = builder.build(given(model(ones={"match": "fc.*", "policy": "ones"}, bert=rule)))
    assert torch.equal(built.fc[1].weight, A)
    assert torch.equal(built.fc[0].weight, torch.ones(4, 3))


def kept(words):
    """A rule for four words of which two are absent, whose rows it keeps."""
    rows = {"vocabulary": words("mine.txt", "a", "x", "b", "y"), "absent": "keep"}
    path = words("v.vec", "b 4 5 6", "a 1 2 3")
    return {"match": "table.weight", "policy": "pretrained", "path": path, "rows": rows}


BELOW = [
    pytest.param({"policy": "normal", "std": 3.0}, id="in chunks"),
    pytest.param({"policy": "orthogonal"}, id="whole"),
    pytest.param({"policy": "expression", "value": "=i0 + 10 * i1"}, id="by index"),
    pytest.param({"policy": "default"}, id="the layer's own"),
]


@pytest.mark.parametrize("rng", ["keyed", "torch"])
@pytest.mark.parametrize("below", BELOW)
def test_rows_of_absent_words_keep_what_the_rule_below_gives_them(below, rng, given, words):
    rule = {"match": "table.weight", **below}
    alone = builder.build(given(model(below=rule)), rng=rng).table.weight
    built = builder.build(given(model(below=rule, words=kept(words))), rng=rng).table.weight
    assert built[[0, 2]].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert torch.equal(built[[1, 3]], alone[[1, 3]])
    assert built[1].tolist() == [0, 0, 0], "a padding row that no file has is zero"


@pytest.mark.parametrize("rng", ["keyed", "torch"])
def test_kept_padding_row_is_zero_where_the_embedding_is_tied_to_another_layer(rng, given, words):
    data = model(words={**kept(words), "match": "head.weight"})
    data["layers"]["head"] = {"kind": "Linear", "in_features": 3, "out_features": 4, "bias": False}
    built = builder.build(given({**data, "tie": {"table.weight": "head.weight"}}), rng=rng).table.weight
    assert built[:3].tolist() == [[1, 2, 3], [0, 0, 0], [4, 5, 6]]
    assert built[3].abs().min() > 0


def test_axes_of_a_rule_that_keeps_rows_are_refused_and_those_of_the_rule_below_read(given, refusal, words):
    keeping, axes = kept(words), {"axes": ["in", "out"]}
    below = {"match": "table.weight", "policy": "kaiming_normal"}
    problem = refusal(builder.prove, given(model(below=below, words={**keeping, **axes})))
    assert (problem.address, "pretrained reads no fan-in" in problem.what) == ("init.words.axes", True)
    problem = refusal(builder.prove, given(model(below={**below, "policy": "normal", **axes}, words=keeping)))
    assert (problem.address, "normal reads no fan-in" in problem.what) == ("init.below.axes", True)
    alone = builder.build(given(model(below={**below, **axes}))).table.weight
    built = builder.build(given(model(below={**below, **axes}, words=keeping))).table.weight
    assert torch.equal(built[[1, 3]], alone[[1, 3]])


def test_kept_rows_are_those_of_the_layer_where_no_rule_stands_below(given, words):
    built = builder.build(given(model(words=kept(words))))
    assert torch.equal(built.table.weight[3], builder.build(given(model())).table.weight[3])
    assert torch.equal(builder.initial_values(built, "table.weight", rows=(1, 4)), built.table.weight[1:])


def test_words_that_one_file_lacks_may_come_from_another(given, words):
    other = {**kept(words), "path": words("w.vec", "x 7 7 7", "a 8 8 8")}
    built = builder.build(
        given(model(zeros={"match": "table.weight", "policy": "zeros"}, other=other, words=kept(words)))
    )
    assert built.table.weight.tolist() == [[1, 2, 3], [7, 7, 7], [4, 5, 6], [0, 0, 0]]


def test_kept_rows_of_a_compressed_file_are_drawn_in_their_own_chunks(given, words, tmp_path):
    count = 2**18  # rows of three values: two chunks
    np.savez_compressed(tmp_path / "two.npz", w=np.ones((2, 3), np.float32))
    rows = {
        "vocabulary": words("mine.txt", *map(str, range(count))),
        "source": words("theirs.txt", "0", "200000"),
        "absent": "keep",
    }
    rule = {
        "match": "table.weight",
        "policy": "pretrained",
        "path": str(tmp_path / "two.npz"),
        "key": "w",
        "rows": rows,
    }
    data = model()
    data["layers"]["table"]["num_embeddings"] = count
    alone = builder.build(given(data)).table.weight
    built = builder.build(given({**data, "init": {"words": rule}})).table.weight
    assert (built != alone).any(1).nonzero().flatten().tolist() == [0, 200000]
    assert built[[0, 200000]].tolist() == [[1, 1, 1]] * 2


@pytest.mark.parametrize(
    ("below", "what", "hint"),
    [
        pytest.param({}, "no rule below gives 'w' values", "init: normal", id="nothing"),
        pytest.param({"policy": "copy", "of": "fc.0.weight"}, "'w' is filled by copy otherwise", "zeros", id="copy"),
        pytest.param({"policy": "empty"}, "'w' is filled by empty otherwise", "zeros", id="empty"),
    ],
)
def test_rows_that_nothing_would_give_cannot_be_kept(below, what, hint, words, refusal):
    data = model(**({"below": {"match": "w", **below}} if below else {}), words={**kept(words), "match": "w"})
    data["layers"]["w"] = {"kind": "Parameter", "shape": [4, 3]}
    problem = refusal(builder.prove, data)
    assert problem.address == "init.words.rows.absent"
    assert what in problem.what
    assert hint in problem.hint


def test_rule_below_is_dead_only_where_it_gives_no_rows(words, refusal):
    rules = {name: {"match": "table.weight", "policy": name} for name in ("ones", "zeros")}
    problem = refusal(builder.prove, model(**rules, words=kept(words)))
    assert (problem.address, "decides nothing" in problem.what) == ("init.ones", True)


def test_kept_rows_of_a_buffer_are_those_that_are_declared(words):
    rule = {**kept(words), "match": ["table.weight", "rows"]}
    data = {**model(words=rule), "buffers": {"rows": {"value": "=full([4, 3], 9.0)"}}}
    assert builder.build(data).rows.tolist() == [[1, 2, 3], [9, 9, 9], [4, 5, 6], [9, 9, 9]]


def test_all_that_is_wrong_with_several_rules_is_told_at_once(given, file):
    path = file(table__weight=A.T, fc__0__weight=A)
    one = {"match": "table.weight", "policy": "pretrained", "path": path}
    two = {"match": "fc.*.weight", "policy": "pretrained", "path": path}
    with pytest.raises(builder.BuilderError) as caught:
        builder.build(given(model(one=one, two=two)))
    assert [problem.address for problem in caught.value.problems] == ["init.one", "init.two.key"]


def test_value_that_overflows_is_refused_before_the_module_is_handed_out(given, file):
    data = model(bert={"match": "fc.*.weight", "policy": "pretrained", "path": file(w=1e6 * A), "key": "w"})
    data["layers"]["fc"]["dtype"] = "float16"
    with pytest.raises(
        builder.BuilderError, match=r"'fc\.0\.weight': \[0, 1\] is 1000000\.0 in float32, which float16"
    ):
        builder.build(given(data))


def test_model_takes_what_it_exported(tmp_path, given):
    first = builder.build(given(model()), seed=1)
    torch.save({"epoch": 3, "state_dict": first.state_dict()}, tmp_path / "last.ckpt")
    rule = {"match": "*", "policy": "pretrained", "path": str(tmp_path / "last.ckpt")}
    second = builder.build(given(model(last=rule)), seed=2)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name))


def test_report_says_in_a_line_what_was_matched_missing_and_not_used():
    report = PretrainedReport("m.pt", {"a": ("k",)}, ("b", "c"), tuple("vwxyz"))
    assert str(report) == (
        "pretrained m.pt: 1 parameter matched; 2 missing in the file: b, c; "
        "5 keys of the file not used: v, w, x, y, ..."
    )
    assert str(PretrainedReport("m.pt", {"a": ("k",)}, (), ())) == "pretrained m.pt: 1 parameter matched"


# ---- buffers ---------------------------------------------------------------------------------------------------------

NORMED = {
    "inputs": {"x": {"shape": ["b", 3]}},
    "layers": {"bn": {"kind": "BatchNorm1d", "num_features": 3}},
    "buffers": {"shift": {"value": [0.0, 0.0]}, "unsaved": {"value": [5.0], "persistent": False}},
    "forward": "bn(x) + shift.sum() + unsaved",
}
STATISTICS = {"x__running_mean": torch.tensor([1.0, 2, 3]), "x__num_batches_tracked": torch.tensor(7)}


def test_saved_buffers_come_with_the_weights(file):
    path = file(x__weight=torch.full((3,), 9.0), x__bias=torch.zeros(3), shift=torch.tensor([4.0, 5]), **STATISTICS)
    rules = {"bn": {"match": "bn.*", "policy": "pretrained", "path": path, "key": "x.{1}"}}
    built = builder.build({**NORMED, "init": rules})
    assert built.bn.running_mean.tolist() == [1, 2, 3]
    assert built.bn.num_batches_tracked == 7
    assert built.bn.running_var.tolist() == [1, 1, 1], "the file has none: it stays as the class makes it"
    assert (built.shift.tolist(), built.unsaved.tolist()) == ([0, 0], [5])
    (report,) = builder.prove({**NORMED, "init": rules}).pretrained
    assert report.missing == ("bn.running_var",)
    assert report.unexpected == ("shift",)


def test_buffers_from_a_file_survive_a_second_init(file):
    path = file(x__weight=torch.full((3,), 9.0), x__bias=torch.zeros(3), **STATISTICS)
    rule = {"match": "bn.*", "policy": "pretrained", "path": path, "key": "x.{1}"}
    built = builder.build({**NORMED, "init": {"bn": rule}}, device="meta")
    assert builder.initialise(built).bn.running_mean.tolist() == [1, 2, 3]


def test_buffer_of_another_shape_is_refused(file, refusal):
    path = file(x__weight=torch.full((3,), 9.0), x__bias=torch.zeros(3), x__running_mean=torch.zeros(4))
    rule = {"match": "bn.*", "policy": "pretrained", "path": path, "key": "x.{1}"}
    problem = refusal(builder.prove, {**NORMED, "init": {"bn": rule}})
    assert "(4,)" in problem.what and "(3,)" in problem.what
