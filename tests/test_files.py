"""Matrices and ratings from files, and everything that is refused."""

import pickle

import numpy as np
import pandas
import pytest
import torch
from cases import OBSERVATION
from numpy.testing import assert_array_equal
from scipy.io import mmwrite
from scipy.sparse import coo_array

from mfgd import files, problem
from mfgd.types import Refused

NAN = np.nan
TABLE = np.array([[1.5, NAN, -3.0, 0.1], [4e-9, 5.0, 6e12, NAN]])


def file(**keys) -> problem.Problem:
    return problem.file(**OBSERVATION | keys)


def ratings(**keys) -> problem.Problem:
    return problem.ratings(**{"heldout": 0.0, "seed": 0} | keys)


def observed(given: problem.Problem) -> np.ndarray:
    """The data with NaN for a missing entry."""
    return given.observation.with_nan().numpy()


def save(path, array: np.ndarray) -> str:
    write = {
        ".npy": lambda: np.save(path, array),
        ".npz": lambda: np.savez(path, anything=array),
        ".csv": lambda: pandas.DataFrame(array).to_csv(path, index=False, header=False),
        ".tsv": lambda: pandas.DataFrame(array).to_csv(path, sep="\t", index=False, header=False),
        ".mtx": lambda: mmwrite(path, array),
        ".pt": lambda: torch.save(torch.from_numpy(array), path),
        ".parquet": lambda: pandas.DataFrame(array).rename(columns=str).to_parquet(path),
    }
    write[path.suffix.lower()]()
    return str(path)


def test_known_formats():
    assert set(files.READERS) == {".npy", ".npz", ".csv", ".tsv", ".mtx", ".pt", ".parquet"}


ARRAYS = {"nan": TABLE, "full": np.nan_to_num(TABLE), "int": np.arange(6).reshape(3, 2)}


@pytest.mark.parametrize(
    ("suffix", "array"),
    # MatrixMarket has no missing entries.
    [(s, a) for s in files.READERS for a in ARRAYS if (s, a) != (".mtx", "nan")],
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


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3\n4,,6\n",
        "a,b,c\n1,2,3\n4,,6\n",
        ",b,c\n1,2,3\n4,,6\n",
        "\ufeffa,b,c\r\n1,2,3\r\n4,,6\r\n",
        "1, 2 ,3\n\n4,NaN,6",
        '"1","2","3"\n"4","","6"\n',
        "1e0,2.0,+3\n4, ,6\n",
    ],
    ids=[
        "plain",
        "header",
        "header with a blank",
        "BOM and CRLF",
        "spaces and blank line",
        "quotes",
        "notations",
    ],
)
def test_csv_as_people_write_it(text, tmp_path):
    (tmp_path / "data.csv").write_text(text, newline="")
    assert_array_equal(observed(file(path=str(tmp_path / "data.csv"))), [[1, 2, 3], [4, NAN, 6]])


def test_a_first_line_of_missing_entries_is_no_header(tmp_path):
    (tmp_path / "data.csv").write_text(",,\n1,2,3\n")
    assert_array_equal(observed(file(path=str(tmp_path / "data.csv"))), [[NAN] * 3, [1, 2, 3]])


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
    **{f"empty{suffix}": (b"", "an empty file") for suffix in files.READERS},
    **{f"garbage{suffix}": (b"\x00\x01\xff garbage \n", "") for suffix in files.READERS},
    **{f"words{suffix}": (b"hello\n", "") for suffix in files.READERS},
    "unknown.xlsx": (b"1,2\n", "unknown format; allowed are .npy"),
    "none": (b"1,2\n", "unknown format"),
    "ragged.csv": (b"1,2\n3\n", "ragged: rows of 1 to 2 cells"),
    "text.csv": (b"1,2\n3,x\n", "row 2: .*'x'; allowed are numbers"),
    "header-only.csv": (b"a,b\n", "empty matrix"),
    "infinite.csv": (b"1,inf\n", "1 infinite"),
    "blank.csv": (b",\n,\n", "every entry is missing"),
    "latin.csv": ("a,é\n1,2\n".encode("latin-1"), "not readable as .csv"),
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
        "arrays A, B; allowed is one array, or one",
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
    "complex.mtx": (lambda path: mmwrite(path, np.eye(2, dtype=complex)), "complex"),
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
    for suffix in (".npy", ".npz", ".pt", ".parquet"):
        path = tmp_path / f"data{suffix}"
        save(path, np.random.default_rng(0).normal(size=(20, 20)))
        whole = path.read_bytes()
        for share in (0.1, 0.5, 0.99):
            path.write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(Refused, match="not readable as"):
                file(path=str(path))


# Ratings


LINES = [(7, 30, 4, 1), (2, 10, 1.5, 2), (7, 10, 5, 3), (2, 20, 3, 4), (7, 30, 2, 5)]

USERS_BY_ITEMS = [
    [1.5, 3, NAN],
    [5, NAN, 2],
]  # users 2, 7; items 10, 20, 30; the last line overrides the first


@pytest.mark.parametrize(
    ("name", "header", "separator"),
    [
        ("u.data", "", "\t"),
        ("ratings.dat", "", "::"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n", ","),
    ],
)
@pytest.mark.parametrize("width", [4, 3])
def test_ratings(name, header, separator, width, tmp_path):
    if width == 3:
        header = header.replace(",timestamp", "")
    text = header + "".join(separator.join(map(str, line[:width])) + "\n" for line in LINES)
    (tmp_path / name).write_text(text)
    assert_array_equal(observed(ratings(path=str(tmp_path / name))), USERS_BY_ITEMS)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("u.data", None, "no such file"),
        ("u.data", "", "an empty file"),
        ("u.tsv", "1\t1\t5\n", "unknown format; allowed are u.data, ratings.dat and ratings.csv"),
        ("u.data", "1\t2\n", "2 columns; allowed are at least user, item and rating"),
        ("u.data", "1 1 5 0\n", "1 columns"),
        ("u.data", "1\tx\t5\n", "allowed are numeric"),
        ("u.data", "1\t1\t\n", "a line without user, item or rating"),
        ("u.data", "1\t1\tinf\n", "a line without"),
        ("ratings.csv", "userId,movieId,rating\n", "empty matrix"),
        ("ratings.csv", "userId,movieId,rating\n1,2\n", "a line without"),
        ("ratings.dat", "1::1::5::0\n1::1::5::0::9::9\n", "not readable as .dat"),
        ("ratings.dat", "1:1:5\n", "values between single colons; allowed are user::item::rating"),
    ],
)
def test_ratings_refuses(name, content, reason, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(Refused, match=rf"^problem\.path=.*{name}: .*{reason}") as refused:
        ratings(path=str(tmp_path / name))
    assert "\n" not in str(refused.value)
