"""Matrices from files of every format, and everything that is refused."""

import gzip
import pickle

import h5py
import numpy as np
import pandas
import pytest
import torch
from cases import FILE
from numpy.testing import assert_array_equal
from PIL import Image
from safetensors.torch import save_file
from scipy.io import mmwrite, savemat
from scipy.sparse import coo_array, csc_array, save_npz

from mfgd import files, formats, problem
from mfgd.types import Refused

NAN = np.nan
TABLE = np.array([[1.5, NAN, -3.0, 0.1], [4e-9, 5.0, 6e12, NAN]])


def file(**keys) -> problem.Problem:
    return problem.file(**FILE | keys)


def observed(given: problem.Problem) -> np.ndarray:
    """The data with NaN for a missing entry."""
    return given.observation.with_nan().numpy()


def save(path, array: np.ndarray) -> str:
    write = {
        ".npy": lambda: np.save(path, array),
        ".npz": lambda: np.savez(path, anything=array),
        ".csv": lambda: pandas.DataFrame(array).to_csv(path, index=False, header=False),
        ".tsv": lambda: pandas.DataFrame(array).to_csv(path, sep="\t", index=False, header=False),
        ".txt": lambda: np.savetxt(path, array, fmt="%.17g"),
        ".dat": lambda: np.savetxt(path, array),
        ".data": lambda: np.savetxt(path, array, delimiter=","),
        ".mtx": lambda: mmwrite(path, array),
        ".mat": lambda: savemat(path, {"anything": array}),
        ".h5": lambda: save_hdf5(path, {"group/anything": array}),
        ".hdf5": lambda: save_hdf5(path, {"anything": array}),
        ".pt": lambda: torch.save(torch.from_numpy(array), path),
        ".safetensors": lambda: save_file({"anything": torch.from_numpy(array)}, path),
        ".parquet": lambda: pandas.DataFrame(array).rename(columns="c{}".format).to_parquet(path),
        ".feather": lambda: pandas.DataFrame(array).rename(columns="c{}".format).to_feather(path),
    }
    write[path.suffix.lower()]()
    return str(path)


def save_hdf5(path, arrays: dict[str, np.ndarray]) -> None:
    with h5py.File(path, "w") as content:
        for name, array in arrays.items():
            content[name] = array


IMAGES = [".png", ".jpg", ".jpeg"]
SUFFIXES = sorted({*files.TEXTS, *formats.FRAMES, *formats.READERS} - set(IMAGES))

ARRAYS = {"nan": TABLE, "full": np.nan_to_num(TABLE), "int": np.arange(6).reshape(3, 2)}


@pytest.mark.parametrize(
    ("suffix", "array"),
    # MatrixMarket has no missing entries.
    [(s, a) for s in SUFFIXES for a in ARRAYS if (s, a) != (".mtx", "nan")],
)
def test_round_trip(suffix, array, tmp_path):
    array = ARRAYS[array]
    given = file(path=save(tmp_path / f"data{suffix}", array))
    assert given.D.dtype == torch.float64
    assert_array_equal(observed(given), array)


def test_a_column_and_a_row_keep_their_shape(tmp_path):
    for shape in ((3, 1), (1, 3)):
        assert file(path=save(tmp_path / "data.csv", np.ones(shape))).shape == shape


def test_suffix_in_capitals(tmp_path):
    assert file(path=save(tmp_path / "data.CSV", np.eye(2))).shape == (2, 2)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "data.npy", np.eye(2))
    assert file(path="~/data.npy").shape == (2, 2)


def test_unlisted_entries_of_matrix_market_are_zero(tmp_path):
    mmwrite(tmp_path / "data.mtx", coo_array(([2.5, -1.0], ([0, 2], [1, 3])), shape=(3, 4)))
    assert_array_equal(
        observed(file(path=str(tmp_path / "data.mtx"))), [[0, 2.5, 0, 0], [0] * 4, [0, 0, 0, -1]]
    )


def test_parquet_of_nullable_columns(tmp_path):
    frame = pandas.DataFrame(
        {"a": pandas.array([1, None], dtype="Int64"), "b": [0.5, None], "c": [True, False]}
    )
    frame.to_parquet(tmp_path / "data.parquet")
    assert_array_equal(
        observed(file(path=str(tmp_path / "data.parquet"))), [[1, 0.5, 1], [NAN, NAN, 0]]
    )


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_the_array_named_d_is_read_if_there_are_several(suffix, tmp_path):
    arrays = {"A": torch.zeros(2, 2), "D": torch.eye(3)}
    path = tmp_path / f"data{suffix}"
    torch.save(arrays, path) if suffix == ".pt" else np.savez(path, **arrays)
    assert_array_equal(file(path=str(path)).D, np.eye(3))


class Payload:
    """What no reader may run."""

    def __reduce__(self):
        return (print, ("executed",))


UNUSABLE = {
    "missing.csv": (None, "no such file"),
    "folder.csv": (lambda path: path.mkdir(), "no such file"),
    **{f"empty{suffix}": (b"", "an empty file") for suffix in [*SUFFIXES, *IMAGES]},
    **{f"garbage{suffix}": (b"\x00\x01\xff garbage \n", "") for suffix in [*SUFFIXES, *IMAGES]},
    **{f"words{suffix}": (b"hello\n", "") for suffix in [*SUFFIXES, *IMAGES]},
    "unknown.xlsx": (b"1,2\n", "unknown format; allowed are .csv .tsv"),
    "none": (b"1,2\n", "unknown format"),
    "ragged.csv": (b"1,2\n3\n", "ragged: rows of 1 to 2 cells"),
    "text.csv": (b"1,2\n3,x\n", "line 2: 'x' is no number; allowed are numbers"),
    "header-only.csv": (b"a,b\n", "empty matrix"),
    "infinite.csv": (b"1,inf\n", "1 infinite"),
    "blank.csv": (b",\n,\n", "every entry is missing"),
    "endless-quote.csv": (b'"' + b"1,2\n" * 50_000, "not readable as .csv"),
    "vector.npy": (lambda path: np.save(path, np.ones(3)), r"shape \(3,\)"),
    "complex.npy": (lambda path: np.save(path, np.eye(2, dtype=complex)), "complex"),
    "text.npy": (lambda path: np.save(path, np.array([["a", "b"]])), ""),
    "dates.npy": (lambda path: np.save(path, np.zeros((2, 2), dtype="M8[s]")), ""),
    "fields.npy": (
        lambda path: np.save(path, np.zeros((2, 2), dtype=[("a", float), ("b", int)])),
        "",
    ),
    "pickle.npy": (
        lambda path: np.save(path, np.array([[Payload()]]), allow_pickle=True),
        "not readable as .npy",
    ),
    "pickle.npz": (lambda path: np.savez(path, D=np.array([[Payload()]])), "not readable as .npz"),
    "pickle.pt": (lambda path: torch.save({"D": Payload()}, path), "not readable as .pt"),
    "raw-pickle.pt": (
        lambda path: path.write_bytes(pickle.dumps(Payload())),
        "not readable as .pt",
    ),
    "several.npz": (
        lambda path: np.savez(path, A=np.eye(2), B=np.eye(2)),
        "arrays A, B; allowed is one array, or one named D; problem.variable=NAME decides",
    ),
    "several.pt": (
        lambda path: torch.save({"A": torch.eye(2), "B": torch.eye(2)}, path),
        "arrays A, B; allowed",
    ),
    "none.npz": (lambda path: np.savez(path), "arrays none"),
    "text.pt": (lambda path: torch.save("hello", path), ""),
    "text-in-D.pt": (lambda path: torch.save({"D": "hello"}, path), ""),
    "nothing.pt": (lambda path: torch.save(None, path), ""),
    "ragged.pt": (lambda path: torch.save([[1.0], [1.0, 2.0]], path), ""),
    "text.parquet": (lambda path: pandas.DataFrame({"a": ["x"]}).to_parquet(path), ""),
    "dates.parquet": (
        lambda path: pandas.DataFrame({"a": pandas.to_datetime(["2020-01-01"])}).to_parquet(path),
        "",
    ),
    "open.mtx": (b"%%MatrixMarket matrix array real general\n1 3\n1\n6E", "Truncated"),
    "zero.mtx": (b"%%MatrixMarket matrix array real general\n1 2\n1\x005\n2\n", "a byte 0"),
    "flat.mtx": (b"%%MatrixMarket matrix array real general\n0 2\n", "no matrix"),
    "complex.mtx": (lambda path: mmwrite(path, np.eye(2, dtype=complex)), "complex"),
    "complex.pt": (lambda path: torch.save(torch.eye(2, dtype=torch.cfloat), path), "complex"),
    "large.npy": (lambda path: np.save(path, np.array([[2**53 + 1]])), r"beyond 2\^53"),
    "broken.csv.gz": (b"1,2\n", "not readable as .gz"),
    "struct.mat": (lambda path: savemat(path, {"D": {"a": 1.0}}), "entries of type"),
    "half.png": (
        lambda path: Image.new("LA", (2, 2), (9, 128)).save(path),
        "transparent in part",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_file_refuses_in_one_line(name, tmp_path, capsys):
    make, reason = UNUSABLE[name]
    path = tmp_path / name
    if make is not None:
        make(path) if callable(make) else path.write_bytes(make)
    with pytest.raises(Refused, match=rf"^problem\.path={path}: .*({reason})") as refused:
        file(path=str(path))
    assert "\n" not in str(refused.value)
    assert capsys.readouterr().out == ""


def test_truncated_files_are_refused(tmp_path):
    for suffix in (".npy", ".npz", ".pt", ".parquet", ".feather", ".mat", ".h5", ".safetensors"):
        path = tmp_path / f"data{suffix}"
        save(path, np.random.default_rng(0).normal(size=(20, 20)))
        whole = path.read_bytes()
        for share in (0.1, 0.5, 0.99):
            path.write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(Refused, match="not readable as"):
                file(path=str(path))


# Sparse matrices


@pytest.mark.parametrize("suffix", [".mtx", ".npz", ".mat", ".pt"])
@pytest.mark.parametrize("unlisted", ["zero", "missing"])
def test_what_an_unlisted_entry_is(suffix, unlisted, tmp_path):
    matrix = coo_array(([2.5, -1.0, 0.0], ([0, 2, 1], [1, 3, 0])), shape=(3, 4))
    path = tmp_path / f"data{suffix}"
    at = np.array([[0, 2, 1], [1, 3, 0]])
    values = torch.sparse_coo_tensor(at, [2.5, -1.0, 0.0], (3, 4), check_invariants=False)
    write = {
        ".mtx": lambda: mmwrite(path, matrix),
        ".npz": lambda: save_npz(path, matrix),
        ".mat": lambda: savemat(path, {"A": matrix}),
        ".pt": lambda: torch.save(values, path),
    }
    write[suffix]()
    given = file(path=str(path), unlisted=unlisted)
    expected = matrix.toarray()
    if unlisted == "missing":
        expected[:] = NAN
        expected[[0, 2], [1, 3]] = [2.5, -1.0]
        expected[1, 0] = 0.0
    assert_array_equal(observed(given), expected)
    assert f"3 entries listed, all others {unlisted}" in given.source.summary


def test_missing_entries_of_a_large_sparse_matrix_stay_unlisted(tmp_path):
    generator = np.random.default_rng(0)
    at = generator.choice(3000 * 2000, 6000, replace=False)
    matrix = coo_array((generator.normal(size=6000), divmod(at, 2000)), shape=(3000, 2000))
    save_npz(tmp_path / "D.npz", matrix.tocsr())
    given = file(path=str(tmp_path / "D.npz"), unlisted="missing", heldout=0.1)
    assert given.observation.arrays_of_a_step is None
    both = given.observation.matrix.to_dense() + given.heldout.matrix.to_dense()
    assert_array_equal(both, matrix.toarray())
    seen = file(path=str(tmp_path / "D.npz"), unlisted="missing", observed=0.5, noise=0.1)
    assert seen.count == round(0.5 * matrix.nnz)
    at = seen.observation.matrix.to_dense().numpy() != 0
    difference = (seen.observation.matrix.to_dense().numpy() - matrix.toarray())[at]
    assert 0.08 < difference.std() < 0.12


def test_entries_that_a_matrix_lists_twice_are_added(tmp_path):
    (tmp_path / "D.mtx").write_text(
        "%%MatrixMarket matrix coordinate real general\n2 2 3\n1 1 1.5\n1 1 2\n2 1 4\n"
    )
    given = file(path=str(tmp_path / "D.mtx"))
    assert_array_equal(given.D, [[3.5, 0], [4, 0]])
    assert "1 of them added to another of the same place" in given.source.summary


# Arrays


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">i2", "<u2", "f2", "longdouble", "?"])
def test_any_byte_order_and_type(dtype, tmp_path):
    array = np.array([[1, 0, 1], [0, 1, 1]]).astype(dtype)
    np.save(tmp_path / "D.npy", array)
    assert_array_equal(file(path=str(tmp_path / "D.npy")).D, array.astype(float))


def test_a_plain_array_beside_python_objects(tmp_path):
    np.savez(tmp_path / "D.npz", D=np.eye(2), names=np.array([["a", 1]], dtype=object))
    assert_array_equal(file(path=str(tmp_path / "D.npz")).D, np.eye(2))


def test_the_variable_that_is_named(tmp_path):
    arrays = {"X": np.arange(6.0).reshape(3, 2), "Y": np.eye(2)}
    for suffix in formats.CONTAINERS:
        path = tmp_path / f"data{suffix}"
        write = {
            ".npz": lambda path: np.savez(path, **arrays),
            ".pt": lambda path: torch.save({k: torch.tensor(v) for k, v in arrays.items()}, path),
            ".safetensors": lambda path: save_file(
                {k: torch.tensor(v) for k, v in arrays.items()}, path
            ),
            ".mat": lambda path: savemat(path, arrays),
        }
        write.get(suffix, lambda path: save_hdf5(path, arrays))(path)
        assert_array_equal(file(path=str(path), variable="X").D, arrays["X"])
        with pytest.raises(Refused, match=r"problem\.variable=Z: no such array; there are X, Y"):
            file(path=str(path), variable="Z")
        with pytest.raises(Refused, match=r"problem\.variable=NAME decides"):
            file(path=str(path))


def test_a_parameter_of_torch(tmp_path):
    torch.save({"weight": torch.nn.Parameter(torch.eye(3))}, tmp_path / "D.pt")
    assert_array_equal(file(path=str(tmp_path / "D.pt")).D, np.eye(3))


def test_arrays_of_matlab_7_3_are_transposed_and_sparse_ones_are_read(tmp_path):
    """MATLAB writes its columns as the rows of HDF5, and says so in an attribute."""
    D, sparse = np.arange(6.0).reshape(2, 3), csc_array([[0.0, 2.0], [1.0, 0.0], [0.0, 3.0]])
    with h5py.File(tmp_path / "D.mat", "w", userblock_size=512) as content:
        content["D"] = D.T
        content["D"].attrs["MATLAB_class"] = np.bytes_("double")
        group = content.create_group("S")
        group.attrs["MATLAB_sparse"] = np.uint64(3)
        group.attrs["MATLAB_class"] = np.bytes_("double")
        group["data"], group["ir"], group["jc"] = sparse.data, sparse.indices, sparse.indptr
        content.create_group("#refs#")["a"] = np.zeros(3)
    head = b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM"
    content = (tmp_path / "D.mat").read_bytes()
    (tmp_path / "D.mat").write_bytes(head + content[128:])
    assert_array_equal(file(path=str(tmp_path / "D.mat")).D, D)
    assert_array_equal(file(path=str(tmp_path / "D.mat"), variable="S").D, sparse.toarray())


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "I;16"])
def test_grey_values_of_an_image(mode, tmp_path):
    generator = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(generator.integers(0, 2**16, (4, 5), dtype=np.uint16))
        expected = np.array(image)
    else:
        pixels = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        image = pixels.convert(mode)
        expected = np.array(image.convert("RGB" if mode == "P" else mode).convert("L"))
    image.save(tmp_path / "D.png")
    given = file(path=str(tmp_path / "D.png"))
    assert_array_equal(given.D, expected)
    assert "grey values" in given.source.summary


def test_transparent_pixels_are_missing(tmp_path):
    deep = Image.fromarray(np.array([[5, 700], [60000, 5]], dtype=np.uint16))
    deep.save(tmp_path / "deep.png", transparency=5)
    expected = [[NAN, 700], [60000, NAN]]
    assert_array_equal(observed(file(path=str(tmp_path / "deep.png"))), expected)
    pixels = np.array([[[9, 255], [7, 0]], [[200, 255], [0, 255]]], dtype=np.uint8)
    Image.fromarray(pixels, mode="LA").save(tmp_path / "D.png")
    assert_array_equal(observed(file(path=str(tmp_path / "D.png"))), [[9, NAN], [200, 0]])


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".mtx", ".npy"])
def test_compressed_files(suffix, tmp_path):
    plain = tmp_path / f"D{suffix}"
    save(plain, np.arange(6.0).reshape(3, 2) / 7)
    with gzip.open(f"{plain}.gz", "wb") as compressed:
        compressed.write(plain.read_bytes())
    assert_array_equal(file(path=f"{plain}.gz").D, np.arange(6.0).reshape(3, 2) / 7)


def test_what_a_run_keeps_is_a_problem_again(tmp_path):
    """D of a sparse run is kept as the parts of a compressed matrix."""
    dense = {"C": torch.ones(3, 2), "F": torch.ones(2, 4), "D": torch.eye(3, 4)}
    save_file(dense, tmp_path / "matrices.safetensors")
    assert_array_equal(file(path=str(tmp_path / "matrices.safetensors")).D, np.eye(3, 4))
    del dense["D"]
    parts = {
        "D.row_starts": torch.tensor([0, 1, 1, 2], dtype=torch.int32),
        "D.columns": torch.tensor([3, 0], dtype=torch.int32),
        "D.values": torch.tensor([1.5, 2.5]),
    }
    save_file(dense | parts, tmp_path / "sparse.safetensors")
    given = file(path=str(tmp_path / "sparse.safetensors"), unlisted="missing")
    expected = np.full((3, 4), NAN)
    expected[0, 3], expected[2, 0] = 1.5, 2.5
    assert_array_equal(observed(given), expected)


def test_numbers_that_mean_missing(tmp_path):
    np.save(tmp_path / "D.npy", [[1.0, -999.0], [99.5, 3.0]])
    given = file(path=str(tmp_path / "D.npy"), missing=[-999, "NA"])
    assert_array_equal(observed(given), [[1, NAN], [99.5, 3]])


@pytest.mark.parametrize(
    ("suffix", "key", "value"),
    [
        (".npy", "header", True),
        (".npz", "separator", "comma"),
        (".csv", "variable", "D"),
        (".parquet", "header", False),
        (".mtx", "index", True),
    ],
)
def test_keys_that_decide_nothing_are_refused(suffix, key, value, tmp_path):
    path = save(tmp_path / f"D{suffix}", np.eye(2))
    with pytest.raises(Refused, match=rf"problem\.{key}={value}: decides nothing for a {suffix}"):
        file(path=path, **{key: value})


def test_tables_of_pandas(tmp_path):
    frame = pandas.DataFrame({"name": ["x", "y"], "a": [1, 2], "b": [3.5, NAN]})
    frame.to_parquet(tmp_path / "D.parquet")
    given = file(path=str(tmp_path / "D.parquet"))
    assert_array_equal(observed(given), [[1, 3.5], [2, NAN]])
    assert given.source.summary.endswith("first column taken as row names")
    frame.drop(columns="name").reset_index().to_feather(tmp_path / "D.feather")
    assert_array_equal(observed(file(path=str(tmp_path / "D.feather"))), [[1, 3.5], [2, NAN]])
    chosen = file(path=str(tmp_path / "D.feather"), columns=["b"])
    assert_array_equal(observed(chosen), [[3.5], [NAN]])
    pandas.DataFrame({"id": [7, 9], "a": [1.5, 2.5]}).to_parquet(tmp_path / "ids.parquet")
    with pytest.raises(Refused, match=r"the column 'id' holds row names \(problem\.index=true\)"):
        file(path=str(tmp_path / "ids.parquet"))


def test_categories_and_large_numbers_in_tables_of_pandas(tmp_path):
    frame = pandas.DataFrame({"a": pandas.Categorical([10, 20]), "b": [1.0, 2.0]})
    frame.to_feather(tmp_path / "D.feather")
    assert_array_equal(observed(file(path=str(tmp_path / "D.feather"))), [[10, 1], [20, 2]])
    pandas.DataFrame({"a": [2**53 + 1, 2**53]}).to_parquet(tmp_path / "D.parquet")
    with pytest.raises(Refused, match=r"column a has whole numbers beyond 2\^53"):
        file(path=str(tmp_path / "D.parquet"))


def test_sums_of_small_types_do_not_overflow(tmp_path):
    twice = coo_array((np.array([100, 100], dtype=np.int8), ([0, 0], [0, 0])), shape=(2, 2))
    save_npz(tmp_path / "D.npz", twice)
    assert_array_equal(file(path=str(tmp_path / "D.npz")).D, [[200, 0], [0, 0]])


def test_a_masked_entry_is_no_truth_unless_the_user_says_so(tmp_path):
    (tmp_path / "z.csv").write_text("1,2\n3,0\n")
    path = str(tmp_path / "z.csv")
    assert file(path=path, mask=path).truth is None
    assert_array_equal(file(path=path, mask=path, truth=True).truth.target, [[1, 2], [3, 0]])
    assert_array_equal(file(path=path, observed=3).truth.target, [[1, 2], [3, 0]])


def test_a_mask_has_no_header_if_it_may_have_one(tmp_path):
    (tmp_path / "D.csv").write_text("1.5,2.5\n3.5,4.5\n")
    (tmp_path / "mask.csv").write_text("0,1\n1,0\n")
    given = file(path=str(tmp_path / "D.csv"), mask=str(tmp_path / "mask.csv"))
    assert_array_equal(observed(given), [[NAN, 2.5], [3.5, NAN]])
