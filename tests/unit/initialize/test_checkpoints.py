"""Files of tensors: every format gives back what was written, and one that lies is refused before it is believed."""

import io
import json
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from builder.initialize.files.checkpoints import open_checkpoint
from builder.initialize.files.tensor_file import CheckpointError
from builder.initialize.files.word_vectors import read_words

A = torch.arange(12.0).reshape(4, 3)
B = torch.tensor([1, -2], dtype=torch.int64)


# ---- every format gives back what was written ------------------------------------------------------------------------


def write_shards(folder):
    save_file({"a": A}, folder / "one.safetensors")
    save_file({"b": B}, folder / "two.safetensors")
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    return file


def written(kind, folder):
    file = folder / f"model{kind}"
    match kind:
        case ".safetensors":
            save_file({"a": A, "b": B}, file)
        case ".index.json":
            return write_shards(folder)
        case ".pt" | ".pth" | ".ckpt" | ".bin":
            torch.save({"a": A, "b": torch.nn.Parameter(B, requires_grad=False)}, file)
        case ".npz":
            np.savez(file, a=A.numpy(), b=B.numpy())
    return file


@pytest.mark.parametrize("kind", [".safetensors", ".index.json", ".pt", ".pth", ".ckpt", ".bin", ".npz"])
def test_file_gives_back_the_tensors_that_were_written(kind, tmp_path):
    checkpoint = open_checkpoint(written(kind, tmp_path))
    assert sorted(checkpoint.keys()) == ["a", "b"]
    assert (checkpoint.shape("a"), checkpoint.dtype("a")) == ((4, 3), torch.float32)
    assert (checkpoint.shape("b"), checkpoint.dtype("b")) == ((2,), torch.int64)
    assert checkpoint.mapped("a")
    assert torch.equal(checkpoint.read("a"), A)
    assert torch.equal(checkpoint.read("a", slice(1, 3)), A[1:3])
    assert torch.equal(checkpoint.read("a", torch.tensor([2, 0])), A[[2, 0]])
    assert torch.equal(checkpoint.read("b"), B)


@pytest.mark.parametrize("where", ["state_dict", "model", "both"])
def test_tensors_are_found_where_training_programs_keep_them(where, tmp_path):
    inner = {"a": A, "step": 3}
    torch.save(
        {"epoch": 1, **({"model": {"state_dict": inner}} if where == "both" else {where: inner})}, tmp_path / "m.pt"
    )
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    assert checkpoint.keys() == ("a",)
    assert torch.equal(checkpoint.read("a"), A)


def test_lone_tensor_has_an_empty_key(tmp_path):
    torch.save(A, tmp_path / "m.pt")
    assert torch.equal(open_checkpoint(tmp_path / "m.pt").read(""), A)


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(A.numpy(), id="as C keeps it"),
        pytest.param(np.asfortranarray(A.numpy()), id="as Fortran keeps it"),
        pytest.param(A.numpy().astype(">f4"), id="in the other byte order"),
        pytest.param(A.numpy().astype("f8"), id="in float64"),
    ],
)
def test_npy_gives_back_its_array(array, tmp_path):
    np.save(tmp_path / "a.npy", array)
    checkpoint = open_checkpoint(tmp_path / "a.npy")
    assert checkpoint.keys() == ("",)
    assert checkpoint.shape("") == (4, 3)
    assert checkpoint.mapped("") == array.dtype.isnative
    assert torch.equal(checkpoint.read("").float(), A)
    assert torch.equal(checkpoint.read("", slice(3, 4)).float(), A[3:])


def test_npy_with_a_wide_header_gives_back_its_array(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, A.numpy(), version=(2, 0))
    assert torch.equal(open_checkpoint(tmp_path / "a.npy").read(""), A)


def test_compressed_arrays_are_read_whole(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=A.numpy())
    checkpoint = open_checkpoint(tmp_path / "a.npz")
    assert not checkpoint.mapped("a")
    assert torch.equal(checkpoint.read("a", slice(1, 2)), A[1:2])


def test_scalar_keeps_its_empty_shape(tmp_path):
    save_file({"a": torch.tensor(2.5)}, tmp_path / "a.safetensors")
    np.save(tmp_path / "a.npy", np.float32(2.5))
    for name, key in (("a.safetensors", "a"), ("a.npy", "")):
        checkpoint = open_checkpoint(tmp_path / name)
        assert checkpoint.shape(key) == ()
        assert checkpoint.read(key).item() == 2.5


WORDS = "the 1 2 3\nNew York 4 5 6\nthe 7 8 9\nçà 1e-1 -2 nan\n"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(WORDS, id="without a first line"),
        pytest.param("4 3\n" + WORDS, id="with count and dim"),
        pytest.param(WORDS.replace("\n", " \r\n"), id="with spaces and carriage returns at the ends"),
        pytest.param(WORDS.rstrip("\n"), id="without an end of line"),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".vec", ".glove"])
def test_word_vectors_are_found_by_word(text, suffix, tmp_path):
    file = tmp_path / f"v{suffix}"
    file.write_bytes(text.encode())
    checkpoint = open_checkpoint(file)
    assert checkpoint.keys() == ("vectors",)
    assert checkpoint.shape("vectors") == (4, 3)
    assert checkpoint.words == {b"the": 0, b"New York": 1, "çà".encode(): 3}  # of `the`, the first
    assert checkpoint.read("vectors", slice(1, 3)).tolist() == [[4, 5, 6], [7, 8, 9]]
    assert checkpoint.read("vectors", torch.tensor([1])).tolist() == [[4, 5, 6]]
    assert checkpoint.read("vectors")[3, :2].tolist() == [0.1, -2]
    assert checkpoint.dtype("vectors") is torch.float64


@pytest.mark.parametrize("text", [WORDS, "4 3\n" + WORDS], ids=["without a first line", "with count and dim"])
def test_byte_order_mark_is_no_part_of_the_first_word(text, tmp_path):
    (tmp_path / "v.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    checkpoint = open_checkpoint(tmp_path / "v.txt")
    assert checkpoint.words == {b"the": 0, b"New York": 1, "çà".encode(): 3}
    assert checkpoint.read("vectors", slice(0, 2)).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"a\nb\n", [b"a", b"b"], id="two lines"),
        pytest.param(b"a\r\nb", [b"a", b"b"], id="carriage returns, and no end of line"),
        pytest.param(b"\xef\xbb\xbfa\n", [b"a"], id="a byte order mark"),
        pytest.param(b"a\rb\x0bc\n", [b"a\rb\x0bc"], id="signs that end no line of word vectors either"),
        pytest.param(b"a\n\n", [b"a", b""], id="an empty line"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_words_of_a_vocabulary_are_its_lines(data, words, tmp_path):
    (tmp_path / "v.txt").write_bytes(data)
    assert read_words(tmp_path / "v.txt") == words


def test_file_that_was_written_anew_is_read_anew(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(2))
    assert open_checkpoint(tmp_path / "a.npy").shape("") == (2,)
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert open_checkpoint(tmp_path / "a.npy").shape("") == (3,)


# ---- files that are refused ------------------------------------------------------------------------------------------


def safetensors(header, data=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape, end, dtype="F32"):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


def npy(shape, dtype="'<f4'", data=b"\0" * 8, length=None):
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) if length is None else length) + text + data


def archive(entries, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as target:
        for name, data in entries.items():
            target.writestr(name, data)
    return file.getvalue()


def claiming(data, packed, unpacked):
    """An archive of one entry whose directory states other sizes."""
    at = data.index(b"PK\x01\x02")
    return data[: at + 20] + struct.pack("<II", packed, unpacked) + data[at + 28 :]


def torch_file(data_pkl, **others):
    return archive(
        {"m/data.pkl": data_pkl, "m/byteorder": b"little", "m/data/0": b"\0" * 8, "m/version": b"3\n", **others}
    )


def saved(value, **how):
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


def storage_of(count):
    """The pickle of `{"a": tensor}` whose storage claims so many float32 values."""
    code = saved({"a": torch.zeros(2)})
    with zipfile.ZipFile(io.BytesIO(code)) as source:
        pickled = source.read("archive/data.pkl")
    assert pickled.count(b"K\x02") == 2, "the number of values of the storage, and the shape"
    return pickled.replace(b"K\x02", b"J" + struct.pack("<i", count))


class Plain:
    pass


BOMB = b"\x80\x02c%s\n%s\nJ\xff\xff\xff\x7f\x85R."  # calls a class with 2**31 - 1
TWO = archive({"a.npy": npy("(2,)"), "b.npy": npy("(2,)")})

REFUSED = [
    pytest.param(
        "m.safetensors", safetensors(tensor([2**40], 2**42)), "not a safetensors", "again", id="sizes beyond the file"
    ),
    pytest.param(
        "m.safetensors", safetensors(tensor([2**40], 8)), "not a safetensors", "again", id="a shape beyond its bytes"
    ),
    pytest.param("m.safetensors", safetensors(tensor([-2], 8)), "invalid value", "again", id="a negative size"),
    pytest.param(
        "m.safetensors", safetensors(tensor([2**62, 2**62], 8)), "not a safetensors", "again", id="sizes that overflow"
    ),
    pytest.param(
        "m.safetensors", struct.pack("<Q", 2**40) + b"{}", "header too large", "again", id="a header beyond the file"
    ),
    pytest.param("m.safetensors", safetensors(b"[" * 9000), "not a safetensors", "again", id="a header nested deeply"),
    pytest.param("m.safetensors", b"", "header too small", "again", id="an empty safetensors"),
    pytest.param("m.index.json", b"{", "not the index", "weight_map", id="an index that is not JSON"),
    pytest.param("m.index.json", b"[" * 99999, "not the index", "weight_map", id="an index nested deeply"),
    pytest.param("m.index.json", b"[1]", "not the index", "weight_map", id="an index that is a list"),
    pytest.param(
        "m.index.json", b'{"weight_map": {"a": "../x.pt"}}', "names '../x.pt'", "beside", id="a shard elsewhere"
    ),
    pytest.param(
        "m.index.json",
        b'{"weight_map": {"a": "m.index.json"}}',
        "names 'm.index.json'",
        "beside",
        id="an index of itself",
    ),
    pytest.param(
        "m.index.json",
        b'{"weight_map": {"a": "x.npy"}}',
        "no such file",
        "m.index.json",
        id="a shard that is not there",
    ),
    pytest.param(
        "m.pt", saved({"a": A}, _use_new_zipfile_serialization=False), "not an archive", "again", id="an old torch file"
    ),
    pytest.param(
        "m.pt",
        saved(torch.nn.Linear(2, 2)),
        "pickled objects: torch.nn.modules.linear.Linear",
        "state_dict",
        id="a whole module",
    ),
    pytest.param(
        "m.pt",
        torch_file(pickle.dumps(Plain(), 2)),
        "pickled objects: test_checkpoints.Plain",
        "state_dict",
        id="an object",
    ),
    pytest.param(
        "m.pt",
        torch_file(b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R."),
        "objects: os.system",
        "state_dict",
        id="a call of the system",
    ),
    pytest.param(
        "m.pt",
        torch_file(b"\x80\x04\x8c\x02os\x8c\x06system\x93."),
        "pickled objects",
        "state_dict",
        id="a name on the stack",
    ),
    pytest.param(
        "m.pt",
        torch_file(BOMB % (b"torch", b"FloatTensor")),
        "objects: torch.FloatTensor",
        "state_dict",
        id="a tensor made to size",
    ),
    pytest.param(
        "m.pt", torch_file(BOMB % (b"__builtin__", b"bytearray")), "bytearray", "state_dict", id="bytes made to size"
    ),
    pytest.param("m.pt", torch_file(b"\x80\x02"), "pickle is broken", "state_dict", id="a pickle that ends"),
    pytest.param("m.pt", torch_file(b"\x80\x02}."), "holds no tensors", "state_dict", id="no tensors"),
    pytest.param("m.pt", torch_file(b"\x80\x02]."), "holds no tensors", "state_dict", id="a list"),
    pytest.param(
        "m.pt",
        torch_file(storage_of(2**30)),
        "cannot be read|claims",
        "again|state_dict",
        id="a storage beyond the file",
    ),
    pytest.param("m.pt", torch_file(storage_of(64)), "claims 256 bytes", "again", id="a storage beyond its entry"),
    pytest.param(
        "m.pt",
        archive({"m/data.pkl": b"."}, zipfile.ZIP_DEFLATED),
        "compressed",
        "state_dict",
        id="a compressed torch file",
    ),
    pytest.param("m.pt", archive({"a.npy": npy("(2,)")}), "not one of tensors", "state_dict", id="another archive"),
    pytest.param(
        "m.pt", torch_file(b".", **{"m/constants.pkl": b"."}), "not one of tensors", "state_dict", id="a TorchScript"
    ),
    pytest.param(
        "m.npy",
        npy("(2**40,)".replace("2**40", str(2**40))),
        "claims shape",
        "numpy.save",
        id="an array beyond the file",
    ),
    pytest.param("m.npy", npy("(-2,)"), "claims shape (-2,)", "numpy.save", id="an array of negative size"),
    pytest.param("m.npy", npy("(2,)", data=b"\0" * 7), "7 bytes follow", "numpy.save", id="an array cut short"),
    pytest.param("m.npy", npy("(1,)", "'|O'"), "pickled objects", "numpy.save", id="an array of objects"),
    pytest.param("m.npy", npy("((((("), "cannot be read", "numpy.save", id="a header that never ends"),
    pytest.param("m.npy", npy("('x',)"), "cannot be read", "numpy.save", id="a shape of text"),
    pytest.param("m.npy", npy("(2,)", length=65000), "no header", "numpy.save", id="a header that claims too much"),
    pytest.param("m.npy", b"PK", "no header", "numpy.save", id="no array"),
    pytest.param("m.npz", b"PK", "not an archive", "numpy.savez", id="no archive"),
    pytest.param(
        "m.npz", archive({"a.npy": npy(f"({2**40},)")}), "claims shape", "numpy.save", id="an entry with a lying header"
    ),
    pytest.param(
        "m.npz", archive({"a.npy": npy("(1,)", "'|O'")}), "pickled objects", "numpy.save", id="an entry of objects"
    ),
    pytest.param("m.npz", archive({"a.txt": b"word"}), "no header", "numpy.save", id="an entry that is no array"),
    pytest.param(
        "m.npz",
        claiming(archive({"a.npy": npy("(2,)")}), 2**31, 2**31),
        "has room for",
        "again",
        id="an entry beyond the file",
    ),
    pytest.param(
        "m.npz",
        claiming(archive({"a.npy": npy("(2,)")}), 60, 2**31),
        "has room for 60",
        "again",
        id="a stored entry larger than itself",
    ),
    pytest.param(
        "m.npz",
        claiming(archive({"a.npy": npy("(2,)")}, zipfile.ZIP_DEFLATED), 60, 2**31),
        "has room for",
        "again",
        id="an entry deflated beyond what deflate can",
    ),
    pytest.param(
        "m.npz", TWO.replace(b"b.npy", b"a.npy"), "two entries of one name", "again", id="two entries of one name"
    ),
    pytest.param(
        "m.npz", claiming(TWO, 300, 300), "more bytes than the file has", "again", id="entries over each other"
    ),
    pytest.param(
        "m.npz", archive({"a.npy": npy("(2,)")}, zipfile.ZIP_LZMA), "unknown way", "numpy", id="another compression"
    ),
    pytest.param(
        "m.vec",
        b"1000000 300\nthe 1 2\n",
        "promises 1000000 words of 300 numbers",
        "spaces",
        id="more words than bytes",
    ),
    pytest.param("m.vec", b"1 1000000000000\nthe 1\n", "promises 1 words", "spaces", id="more numbers than bytes"),
    pytest.param(
        "m.vec", b"9" * 50 + b" 1\nthe 1\n", "more words than there are", "spaces", id="a count of fifty digits"
    ),
    pytest.param(
        "m.vec", b"2 1\nthe 1.000\n", "promises 2 words, and 1 lines follow", "spaces", id="fewer words than promised"
    ),
    pytest.param("m.vec", b"1 0\nthe\n", "of 0 numbers", "spaces", id="no numbers"),
    pytest.param("m.vec", b"the 1 2\na 1\n", "line 2 is not a word and 2 numbers", "spaces", id="a short line"),
    pytest.param(
        "m.vec",
        b"1 2\nthe 1.000\n",
        "line 2 is not a word and 2 numbers",
        "spaces",
        id="a short line below a first line",
    ),
    pytest.param("m.txt", b"the\na\n", "line 1 is not a word and its numbers", "spaces", id="a list of words"),
    pytest.param("m.txt", b"the " + b"1" * 1_000_001, "line 1 is not a word", "spaces", id="an endless line"),
    pytest.param("m.txt", b"", "holds no words", "spaces", id="no words"),
    pytest.param("m.h5", b"", "unknown suffix '.h5'", "known: .bin", id="an unknown suffix"),
]


@pytest.mark.parametrize("name, data, what, hint", REFUSED)
def test_file_that_is_not_what_it_says_is_refused_before_memory(name, data, what, hint, tmp_path):
    (tmp_path / name).write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert any(words in caught.value.what for words in what.split("|")), caught.value.what
    assert any(words in caught.value.hint for words in hint.split("|")), caught.value.hint
    assert peak < 3_000_000


@pytest.mark.parametrize(
    "pickled",
    [
        pytest.param(BOMB % (b"torch", b"FloatTensor"), id="a tensor"),
        pytest.param(BOMB % (b"__builtin__", b"bytearray"), id="a bytearray"),
        pytest.param(BOMB % (b"torch.storage", b"UntypedStorage"), id="a storage"),
    ],
)
def test_pickle_that_makes_things_to_size_never_reaches_torch(pickled, tmp_path, monkeypatch):
    (tmp_path / "m.pt").write_bytes(torch_file(pickled))
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load was called"))
    with pytest.raises(CheckpointError, match="pickled objects"):
        open_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("cut", [1, 100, 400])
@pytest.mark.parametrize("kind", [".safetensors", ".pt", ".npz"])
def test_file_that_was_cut_short_is_refused(kind, cut, tmp_path):
    file = written(kind, tmp_path)
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(CheckpointError, match=r"not an? |cannot"):
        open_checkpoint(file)


def test_shard_that_lacks_a_promised_key_is_refused(tmp_path):
    file = write_shards(tmp_path)
    file.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "c": "two.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"two\.safetensors lacks 'c'.*1 keys") as caught:
        open_checkpoint(file)
    assert "all shards" in caught.value.hint


def test_damage_to_a_compressed_array_is_refused_when_it_is_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.arange(5000.0))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(CheckpointError, match="cannot be unpacked"):
        open_checkpoint(tmp_path / "a.npz").read("a")


def test_line_without_numbers_is_refused_when_it_is_read(tmp_path):
    (tmp_path / "v.vec").write_text("3 2\na 1 2\nb 1 x\nc 1 2\n")
    checkpoint = open_checkpoint(tmp_path / "v.vec")
    assert checkpoint.read("vectors", torch.tensor([0, 2])).tolist() == [[1, 2], [1, 2]]
    with pytest.raises(CheckpointError, match="line 3: could not convert"):
        checkpoint.read("vectors")


def test_file_that_is_not_there_names_its_neighbours(tmp_path):
    np.save(tmp_path / "weights.npy", np.zeros(2))
    with pytest.raises(CheckpointError, match="no such file") as caught:
        open_checkpoint(tmp_path / "weight.npy")
    assert "did you mean 'weights.npy'" in caught.value.hint
    with pytest.raises(CheckpointError, match="no such file") as caught:
        open_checkpoint(tmp_path / "nowhere" / "weights.npy")
    assert "there is no folder" in caught.value.hint
    assert "working directory" in caught.value.hint
    with pytest.raises(CheckpointError, match="is not a file"):
        open_checkpoint(tmp_path)
