"""Matrices from text files: each is read as what it is, or refused with a key that decides.

The right value is the matrix that a writer of NumPy, pandas or Python was given, or that of a file
in which R's functions write it.
"""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
import pytest
from cases import FILE, expect_deciding_key, read_or_expect_key
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.io import mmwrite, savemat
from scipy.sparse import coo_array

from mfgd import problem
from mfgd.types import Refused

NAN = np.nan
D = np.random.default_rng(0).normal(size=(40, 6))


def read(path: Path, **keys) -> np.ndarray:
    return problem.file(path=str(path), **FILE | keys).observation.with_nan().numpy()


def summary(path: Path, **keys) -> str:
    return problem.file(path=str(path), **FILE | keys).source.summary


def write(folder: Path, text: str, name: str = "D.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder / name


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3\n4,,6\n",
        "a,b,c\n1,2,3\n4,,6\n",
        "\ufeffa,b,c\r\n1,2,3\r\n4,,6\r\n",
        "1, 2 ,3\n\n4,NaN,6",
        '"1","2","3"\n"4","","6"\n',
        "1e0,2.0,+3\n4, ,6\n",
        "x,1,2,3\ny,4,,6\n",
        '"","V1","V2","V3"\n"1",1,2,3\n"2",4,NA,6\n',
        '"V1" "V2" "V3"\n"1" 1 2 3\n"2" 4 NA 6\n',
        '"1",1,2,3\n"2",4,NA,6\n',
        "# a comment\n% another\n1;2;3\n4;;6\n",
        "a,b,c,\n1,2,3,\n4,,6,\n",
        "1|2|3\n4|?|6\n",
        "1,0;2,0;3\n4;null;6\n",
        "  1 \t 2\t3\n4\tnone\t6\n",
        "1   2 3\n 4 N/A   6\n",
        "a,b,c,,\n1,2,3,,\n4,,6,,\n",
        "1,2,3\r4,,6\r",
        ",2020,2021,2022\nfrance,1,2,3\nspain,4,,6\n",
        "a,é,c\n1,2,3\n4,,6\n",
    ],
)
def test_text_as_people_write_it(text, tmp_path):
    assert_array_equal(read(write(tmp_path, text)), [[1, 2, 3], [4, NAN, 6]])


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig"])
def test_encodings(encoding, tmp_path):
    (tmp_path / "D.csv").write_bytes("a,é\n1,2\n".encode(encoding))
    assert_array_equal(read(tmp_path / "D.csv"), [[1, 2]])


def test_first_lines_of_missing_entries_are_no_header(tmp_path):
    for line in (",,", "NA,NA,NA", "?,null,N/A"):
        path = write(tmp_path, f"{line}\n1,2,3\n")
        assert_array_equal(read(path), [[NAN] * 3, [1, 2, 3]])


WAYS = {  # what pandas writes → what is said of it, or the key that decides
    "default": ({}, "header skipped, first column taken as row names"),
    "semicolon": (
        {"sep": ";", "decimal": ","},
        "header skipped, first column taken as row names, cells between semicolons, decimal comma",
    ),
    "quoted": ({"quoting": csv.QUOTE_ALL}, "header skipped, first column taken as row names"),
    "plain": ({"index": False, "header": False}, ""),
    "named": ({"index": False, "header": list("abcdef")}, "header skipped"),
    "labelled": (
        {"index_label": "id"},
        "header skipped, first column taken as row names",
    ),
    "without index": ({"index": False}, "problem.header=true"),
    "without header": ({"header": False}, "problem.index=true"),
    "years": ({"index": False, "header": [str(2001 + i) for i in range(6)]}, "problem.header=true"),
    "wavelengths": (
        {"index": False, "header": [str(400.5 + 5 * i) for i in range(6)]},
        "problem.header=true",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_pandas_writes(way, tmp_path):
    keys, said = WAYS[way]
    pandas.DataFrame(D).to_csv(tmp_path / "D.csv", **keys)
    if said.startswith("problem."):
        name = said.removeprefix("problem.").partition("=")[0]
        with pytest.raises(Refused, match=f"problem.path=.*{said}\\)"):
            read(tmp_path / "D.csv")
        assert_array_equal(read(tmp_path / "D.csv", **{name: True}), D)
        return
    assert_array_equal(read(tmp_path / "D.csv"), D)
    expected = ", ".join(filter(None, ["40×6 matrix, 240 entries observed", said]))
    assert summary(tmp_path / "D.csv") == f"{tmp_path / 'D.csv'}: {expected}"


TWO_WAYS = {  # text → (key, value → matrix)
    "0,1,2\n5,3,1\n2,2,9\n": ("header", {True: [[5, 3, 1], [2, 2, 9]], False: None}),
    "1990,1991\n5,3\n2,2\n": ("header", {True: [[5, 3], [2, 2]], False: None}),
    "0,0.5\n1,0.25\n": ("index", {True: [[0.5], [0.25]], False: [[0, 0.5], [1, 0.25]]}),
    ",b\n7,2\n9,4\n": ("index", {True: [[2], [4]], False: [[7, 2], [9, 4]]}),
    "a,b\n7,2,3\n9,4,5\n": ("index", {True: [[2, 3], [4, 5]], False: [[7, 2, 3], [9, 4, 5]]}),
    "1,3\nx,4\n5,6\n": ("index", {True: [[3], [4], [6]]}),
    "x,1.5\n2,3\n": ("header", {True: [[2, 3]]}),
    '"1,000","2,000"\n': ("decimal", {"point": [[1000, 2000]], "comma": [[1, 2]]}),
    "1,500;2,250\n": ("decimal", {"point": [[1500, 2250]], "comma": [[1.5, 2.25]]}),
    "1,2,3,\n4,5,6,\n": (
        "columns",
        {3: [[1, 2, 3], [4, 5, 6]], 4: [[1, 2, 3, NAN], [4, 5, 6, NAN]]},
    ),
    "a,b\n10%,2\n20%,4\n": ("index", {True: [[2], [4]]}),
    "a,b\nTRUE,2\nFALSE,4\n": ("index", {True: [[2], [4]]}),
    "year,a,b\n2000,1.5,2\n2001,3,4\n": ("index", {True: [[1.5, 2], [3, 4]]}),
    "user_id,a,b\n1,5,2\n2,3,4\n": ("index", {True: [[5, 2], [3, 4]]}),
    "date,a,b\n20200101,5,2\n20200301,3,4\n": ("index", {True: [[5, 2], [3, 4]]}),
    "1 234,5\n2 500,0\n": (
        "separator",
        {"tab": [[1234.5], [2500]], "comma": [[1234, 5], [2500, 0]]},
    ),
    "1\n\n2\n": ("missing", {("",): [[1], [NAN], [2]]}),
}


@pytest.mark.parametrize("text", TWO_WAYS)
def test_what_can_be_read_in_two_ways_is_refused_with_the_key_that_decides(text, tmp_path):
    key, values = TWO_WAYS[text]
    if values.get(False, 0) is None:  # all numbers of the text
        numbers = [list(map(float, line.split(","))) for line in text.split()]
        values = values | {False: numbers}
    expect_deciding_key(read, write(tmp_path, text), key, values)


def test_numbers_of_people(tmp_path):
    path = write(tmp_path, '"1,234,567.5","-2,000"\n"1e3",.5\n')
    assert_array_equal(read(path), [[1234567.5, -2000], [1000, 0.5]])
    path = write(tmp_path, "1.234.567,5;-2,25\n1e3;,5\n")
    assert_array_equal(read(path), [[1234567.5, -2.25], [1000, 0.5]])
    path = write(tmp_path, "1 234,5;\u22122,5\n3'000;4\u00a0000,1\n")
    assert_array_equal(read(path), [[1234.5, -2.5], [3000, 4000.1]])
    with pytest.raises(Refused, match="'1_000' is no number"):
        read(write(tmp_path, "3,4\n5,1_000\n"))
    with pytest.raises(Refused, match="1_000, 2, holds names of columns"):
        read(write(tmp_path, "1_000,2\n3,4\n"))


def test_separators_that_are_named(tmp_path):
    path = write(tmp_path, "1 2;3 4\n", "D.txt")
    with pytest.raises(Refused, match="an empty matrix"):
        read(path)
    path = write(tmp_path, "1:2\n3:4\n", "D.txt")
    assert_array_equal(read(path, separator=":"), [[1, 2], [3, 4]])
    path = write(tmp_path, "1::2\n3::4\n", "D.dat")
    assert_array_equal(read(path, separator="colons"), [[1, 2], [3, 4]])
    with pytest.raises(
        Refused, match=r"problem\.separator=commas: must be one character, or comma"
    ):
        read(path, separator="commas")


def test_columns_that_are_named(tmp_path):
    path = write(tmp_path, "id,name,a,b\n1,x,2.5,3\n2,y,4.5,\n")
    assert_array_equal(read(path, columns=("b", "a")), [[3, 2.5], [NAN, 4.5]])
    assert "2 of 3 columns read" in summary(path, columns=("b", "a"))
    with pytest.raises(Refused, match=r"'x' is no number.*allowed are numbers"):
        read(path)
    for columns, reason in (
        [("c",), r"\[c\]: 0 columns c; there are"],
        [(7,), r"\[7\]: no column 7"],
    ):
        with pytest.raises(Refused, match=rf"problem\.columns={reason}"):
            read(path, columns=columns)
    with pytest.raises(Refused, match=r"problem\.columns=9: must be between 1 and"):
        read(write(tmp_path, "1,2\n"), columns=9)


def test_errors_name_the_line_of_the_file(tmp_path):
    path = write(tmp_path, "# comment\na,b\n1,2\n\n3,x\n")
    with pytest.raises(Refused, match=r"line 5: 'x' is no number.*problem\.missing=\[x\]"):
        read(path)
    assert_array_equal(read(path, missing=["x"]), [[1, 2], [3, NAN]])
    assert_array_equal(read(path, missing=["x", "1", 3]), [[NAN, 2], [NAN, NAN]])
    path = write(tmp_path, "1,2\n3,20%\n")
    with pytest.raises(Refused, match=r"line 2: '20%' is no number; .*problem\.columns chooses"):
        read(path)
    assert "2 rows without an entry" in summary(write(tmp_path, "1,2\n3,4\n,\n,\n"))
    rows = "1,2\n" * 2000
    with pytest.raises(Refused, match="ragged: rows of 1 to 2 cells, line 2001 has 1"):
        read(write(tmp_path, f"{rows}3\n"))
    with pytest.raises(Refused, match=r"line 2001: '1,5' is no number; .*decimal=point or"):
        read(write(tmp_path, f'{rows}"1,5",2\n'))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([[1, 2, -999], [3, 4, -999]], "2 of them -999"),
        ([[1.5, 99], [-7.25, 9.5]], "1 of them 99"),
        ([[10, 7, -1], [3, 5, -1]], "2 of them -1"),
        ([[1, -1], [-1, 1]], None),
        ([[95, 99], [97, 93]], None),
        ([[1, 2], [3, 100]], None),
        ([[0.5, 9999999], [1, 2]], "1 of them 1e+07"),
    ],
)
def test_numbers_that_may_mean_missing_are_pointed_out(entries, said, tmp_path):
    np.savetxt(tmp_path / "D.csv", entries, fmt="%.17g", delimiter=",")
    line = summary(tmp_path / "D.csv")
    assert_array_equal(read(tmp_path / "D.csv"), entries)
    if said is None:
        assert "of them" not in line
    else:
        assert f"{said}, far from all others (if that means missing: problem.missing=[" in line


# Any matrix, by any writer, in any dialect


class Written(NamedTuple):
    """A file and what is in it."""

    text: str | bytes
    suffix: str
    matrix: np.ndarray


INTEGERS = st.integers(-30, 5000).map(float)
ENTRIES = [
    st.floats(-10, 10, allow_subnormal=False),
    INTEGERS,
    st.integers(0, 1).map(float),
    st.integers(1980, 2030).map(float),
    st.floats(-1e300, 1e300),
    st.one_of(INTEGERS, st.floats(0, 1, allow_subnormal=False)),
]
SUFFIXES = st.sampled_from([".csv", ".tsv", ".txt", ".dat"])


@st.composite
def matrices(draw) -> np.ndarray:
    """Matrices of a few rows and columns; some entries may be missing, but not all."""
    n, m = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    entries = draw(st.sampled_from(ENTRIES))
    if draw(st.booleans()):
        entries = st.one_of(entries, entries, st.just(NAN))
    made = np.array(draw(st.lists(entries, min_size=n * m, max_size=n * m)))
    assume(not np.isnan(made).all())
    return made.reshape(n, m)


def is_whole(matrix: np.ndarray) -> bool:
    return bool((np.abs(matrix) < 1e15).all() and (matrix == np.round(matrix)).all())


@st.composite
def written_by_pandas(draw) -> Written:
    matrix = draw(matrices())
    separator = draw(st.sampled_from([",", ";", "\t", "|", " "]))
    # One column with decimal commas has no other separator, and is read as two columns.
    decimal = draw(st.sampled_from([".", ","])) if matrix.shape[1] > 1 else "."
    # One year above years is one more of them.
    years = [list(range(2000, 2005))] if matrix.shape[1] > 1 else []
    names = draw(st.sampled_from([list("abcde"), list(range(5)), *years]))
    rows = draw(st.sampled_from([list("vwxyz"), list(range(5))]))
    frame = pandas.DataFrame(matrix, rows[: len(matrix)], names[: matrix.shape[1]])
    if is_whole(matrix) and draw(st.booleans()):
        frame = frame.astype(int)
    # Between blanks an empty cell is no cell.
    missing = ["NA", "nan", "null"] + ([""] if separator != " " else [])
    text = frame.to_csv(
        sep=separator,
        decimal=decimal,
        index=draw(st.booleans()),
        header=draw(st.booleans()),
        na_rep=draw(st.sampled_from(missing)),
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])),
    )
    return Written(text, draw(SUFFIXES), matrix)


@st.composite
def written_by_numpy(draw) -> Written:
    matrix, content = draw(matrices()), io.StringIO()
    formats = ["%.18e", "%.17g"] + (["%d"] if is_whole(matrix) else [])
    np.savetxt(
        content,
        matrix,
        fmt=draw(st.sampled_from(formats)),
        delimiter=draw(st.sampled_from([",", ";", "\t", " ", " , ", "   "])),
        header=draw(st.sampled_from(["", "a b", "x,y"])),
    )
    return Written(content.getvalue(), draw(SUFFIXES), matrix)


@st.composite
def written_by_r(draw) -> Written:
    """What write.csv, write.csv2 and write.table write: names in quotes, NA, 15 or 17 digits."""
    matrix = draw(matrices())
    separators = [",", ";", " ", "\t"] if matrix.shape[1] > 1 else [",", " ", "\t"]
    separator = draw(st.sampled_from(separators))
    rows, header, corner = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    lines = []
    if header:
        names = [f'"V{i}"' for i in range(1, 1 + matrix.shape[1])]
        lines.append(separator.join((['""'] if corner and rows else []) + names))
    for i, row in enumerate(matrix, 1):
        cells = ["NA" if np.isnan(x) else f"{x:.17g}" for x in row]
        if separator == ";":
            cells = [cell.replace(".", ",") for cell in cells]
        lines.append(separator.join(([f'"{i}"'] if rows else []) + cells))
    return Written("\n".join(lines) + "\n", draw(SUFFIXES), matrix)


@st.composite
def written_by_python(draw) -> Written:
    matrix, content = draw(matrices()), io.StringIO()
    lines = csv.writer(content, delimiter=draw(st.sampled_from([",", ";", "\t", "|"])))
    lines.writerows([["" if np.isnan(x) else repr(float(x)) for x in row] for row in matrix])
    return Written(content.getvalue(), draw(SUFFIXES), matrix)


@st.composite
def written_by_matlab(draw) -> Written:
    """What writematrix, writetable and save -ascii write: 15 digits, or 16 between blanks."""
    matrix = draw(matrices())
    if draw(st.booleans()):
        lines = ["".join(f"  {x: .16e}" for x in row) for row in matrix]
        return Written("\r\n".join(lines) + "\r\n", draw(SUFFIXES), matrix)
    cells = [[f"{x:.15g}".replace("nan", "NaN") for x in row] for row in matrix]
    separator = draw(st.sampled_from([",", "\t", ";", "|"]))
    lines = [separator.join(row) for row in cells]
    if draw(st.booleans()):
        lines.insert(0, separator.join(f"Var{i}" for i in range(1, 1 + matrix.shape[1])))
    text = "\r\n".join(lines) + "\r\n"
    return Written(text, draw(SUFFIXES), np.array([list(map(float, row)) for row in cells]))


@st.composite
def written_by_scipy(draw) -> Written:
    matrix, content = draw(matrices()), io.BytesIO()
    if draw(st.booleans()):
        name = draw(st.sampled_from(["D", "x"]))
        savemat(content, {name: matrix}, do_compression=draw(st.booleans()))
        return Written(content.getvalue(), ".mat", matrix)
    matrix = np.nan_to_num(matrix)  # MatrixMarket has no missing entries
    kind = draw(st.sampled_from([np.array, coo_array]))
    mmwrite(content, kind(matrix), precision=17, symmetry="general")
    return Written(content.getvalue(), ".mtx", matrix)


WRITERS = [
    written_by_pandas(),
    written_by_numpy(),
    written_by_r(),
    written_by_python(),
    written_by_matlab(),
    written_by_scipy(),
]


@given(st.one_of(WRITERS))
@settings(max_examples=900, deadline=None, derandomize=True)
def test_no_matrix_is_read_as_another(tmp_path_factory, written):
    path = tmp_path_factory.getbasetemp() / f"any{written.suffix}"
    content = written.text
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_or_expect_key(read, path)
    if found is not None:
        assert_array_equal(found, written.matrix, strict=True)
