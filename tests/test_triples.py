"""Ratings from files: users, items and ratings are those that the file names, or it is refused.

The right matrix is made by hand from the ratings that a file was written from.
"""

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pandas
import pytest
from cases import READING, expect_deciding_key, read_or_expect_key
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from mfgd import problem
from mfgd.types import Refused

NAN = np.nan
LINES = [(7, 30, 4, 11), (2, 10, 1.5, 12), (7, 10, 5, 13), (2, 20, 3, 14), (7, 30, 2, 15)]
USERS_BY_ITEMS = [[1.5, 3, NAN], [5, NAN, 2]]
"""Users 2 and 7, items 10, 20 and 30; the last line overrides the first."""
TIME = 964982703


def load(path: Path, **keys) -> problem.Problem:
    return problem.ratings(path=str(path), **READING | {"heldout": 0.0, "seed": 0} | keys)


def read(path: Path, **keys) -> np.ndarray:
    return load(path, **keys).observation.with_nan().numpy()


def write(folder: Path, text: str, name: str = "ratings.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder / name


@pytest.mark.parametrize(
    ("name", "header", "separator"),
    [
        ("u.data", "", "\t"),
        ("u1.base", "", "\t"),
        ("ratings.dat", "", "::"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n", ","),
        ("ratings.csv", "", ","),
        ("train.txt", "", " "),
        ("train.tr", "", "  "),
        ("ratings.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n", "\t"),
        ("BX-Book-Ratings.csv", '"User-ID";"ISBN";"Book-Rating";"Date"\n', ";"),
    ],
)
@pytest.mark.parametrize("width", [4, 3])
def test_ratings(name, header, separator, width, tmp_path):
    if width == 3 and header:
        header = header.rstrip("\n").rpartition(separator)[0] + "\n"
    text = header + "".join(separator.join(map(str, line[:width])) + "\n" for line in LINES)
    path = write(tmp_path, text, name)
    assert_array_equal(read(path), USERS_BY_ITEMS)
    assert "1 rating dropped for a later one of the same pair" in load(path).source.summary
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    assert_array_equal(read(tmp_path / f"{name}.gz"), USERS_BY_ITEMS)


@pytest.mark.parametrize(
    "text",
    [
        f"userId,movieId,rating,timestamp\n2,10,1.5,{TIME},\n7,30,2,{TIME},\n",
        ",userId,movieId,rating\n0,2,10,1.5\n1,7,30,2\n",
        f"userId,movieId,timestamp,rating\n2,10,{TIME},1.5\n7,30,{TIME},2\n",
        "movieId,userId,rating\n10,2,1.5\n30,7,2\n",
        f"2,10,1.5,{TIME}\n7,30,2,{TIME}\n",
        '"userId","movieId","rating"\n"1",2,10,1.5\n"2",7,30,2\n',
        '"","userId","movieId","rating"\n"1",2,10,1.5\n"2",7,30,2\n',
        "2;10;1,5\n7;30;2\n",
        "rating,user,item\n1.5,2.0,10.0\n2,7.0,30.0\n",
        "# libmf\n2 10 1.5\n7 30 2\n",
        "10:\n2,1.5,2005-09-06\n30:\n7,2,2005-09-07\n",
        'userId,"movie\nId",rating\n2,10,1.5\n7,30,2\n',
        "userId,movieId,rating\r2,10,1.5\r7,30,2\r",
        "user, item, rating\n2, 10, 1.5\n\n7, 30, 2\n",
        "reviewerID,asin,overall,unixReviewTime\n2,10,1.5,5\n7,30,2,6\n",
        '2,10,1.5,"a title, with a comma"\n7,30,2,"another"\n',
    ],
)
def test_ratings_as_people_have_them(text, tmp_path):
    assert_array_equal(read(write(tmp_path, text)), [[1.5, NAN], [NAN, 2]])


def test_ids_are_identities(tmp_path):
    """9007199254740993 is no number of float64."""
    path = write(tmp_path, "9007199254740992,1,5\n9007199254740993,1,3\n")
    assert_array_equal(read(path), [[5], [3]])
    path = write(tmp_path, "10,a b,5\n9,é,3\n9,a b,1\n")
    assert_array_equal(read(path), [[1, 3], [5, NAN]])
    path = write(tmp_path, "007,x,5\n7,x,3\n")
    assert_array_equal(read(path), [[5], [3]])
    for text, reason in {
        'user,item,rating\n" a",b,5\na,b,3\n': "user ' a': is there without blanks or",
        "user,item,rating\nnan,1,3\n2.0,2,4\n": "a line without user: 'nan'",
        'user,item,rating\n1,"abc,5\n2,def,3\n3,x"y,4\n': "a name of several lines",
        "#a,1,5\n#b,2,3\nc,1,4\n": "line 1 begins like a comment, and may be a rating",
    }.items():
        with pytest.raises(Refused, match=reason):
            read(write(tmp_path, text))
    with pytest.raises(Refused, match=r"user '1\.0': is there without blanks or \.0 too"):
        read(write(tmp_path, "1.0,10,5\n1,11,3\n"))


def test_tables_of_pandas(tmp_path):
    frame = pandas.DataFrame({"stars": [1.5, 2.0], "user_id": [2, 7], "book_id": ["a", "b"]})
    frame.to_parquet(tmp_path / "ratings.parquet")
    frame.to_feather(tmp_path / "ratings.feather")
    for path in tmp_path.iterdir():
        assert_array_equal(read(path), [[1.5, NAN], [NAN, 2]])
    frame.astype({"user_id": float}).assign(user_id=2.0**53).to_parquet(tmp_path / "ids.parquet")
    with pytest.raises(Refused, match="column user_id: user ids so large"):
        read(tmp_path / "ids.parquet")


TWO_WAYS = {  # text → (key, value → matrix)
    "0,2,10,1.5\n1,7,30,2\n": (
        "index",
        {True: [[1.5, NAN], [NAN, 2]], False: [[10, NAN], [NAN, 30]]},
    ),
    f"2,10,{TIME},1.5\n7,30,{TIME},2\n": (
        "columns",
        {
            (0, 1, 3): [[1.5, NAN], [NAN, 2]],
            ("user", "item", "time", "rating"): [[1.5, NAN], [NAN, 2]],
        },
    ),
    "who,what,how\n2,10,1.5\n7,30,2\n": (
        "columns",
        {
            ("who", "what", "how"): [[1.5, NAN], [NAN, 2]],
            ("user", "item", "rating"): [[1.5, NAN], [NAN, 2]],
            ("item", "user", "rating"): [[1.5, NAN], [NAN, 2]],
            (1, 0, 2): [[1.5, NAN], [NAN, 2]],
        },
    ),
    "user,item,rating\n5,2,10,1.5\n6,7,30,2\n": ("index", {True: [[1.5, NAN], [NAN, 2]]}),
    "user,userid,item,rating\n5,2,10,1.5\n6,7,30,2\n": (
        "columns",
        {("userid", "item", "rating"): [[1.5, NAN], [NAN, 2]]},
    ),
    "2;10;1,500\n7;30;2,000\n": (
        "decimal",
        {"comma": [[1.5, NAN], [NAN, 2]], "point": [[1500, NAN], [NAN, 2000]]},
    ),
}


@pytest.mark.parametrize("text", TWO_WAYS)
def test_what_can_be_read_in_two_ways_is_refused_with_the_key_that_decides(text, tmp_path):
    expect_deciding_key(read, write(tmp_path, text), *TWO_WAYS[text])


def test_the_words_user_item_and_rating_say_what_each_column_holds(tmp_path):
    path = write(tmp_path, "10,2,1.5\n30,2,2\n20,7,4\n")
    expected = [[1.5, NAN, 2], [NAN, 4, NAN]]
    assert_array_equal(read(path, columns=("item", "user", "rating")), expected)
    path = write(tmp_path, "item,user,rating\n10,2,1.5\n30,2,2\n20,7,4\n")
    for columns in (("item", "user", "rating"), ("user", "item", "rating")):
        assert_array_equal(read(path, columns=columns), expected)
    with pytest.raises(Refused, match=r"problem\.columns=\[a,b,c\]: no column a; there are item, "):
        read(path, columns=("a", "b", "c"))


def test_missing_ratings_that_are_named(tmp_path):
    path = write(tmp_path, "user,item,rating\n2,10,NA\n2,20,-1\n7,10,3\n")
    with pytest.raises(Refused, match="line 2: a line without user, item or rating: 'NA'"):
        read(path)
    blank = write(tmp_path, "2,10,\n2,20,\n7,10,3\n", "blank.csv")
    with pytest.raises(Refused, match=r"problem\.missing=\[''\] leaves such lines out"):
        read(blank)
    assert_array_equal(read(blank, missing=[""]), [[NAN, NAN], [3, NAN]])
    assert_array_equal(read(path, missing=[-1]), [[NAN, NAN], [3, NAN]])
    assert "2 lines without a rating" in load(path, missing=[-1]).source.summary


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("u.data", None, "no such file"),
        ("u.data", "", "an empty file"),
        ("u.npy", "1\t1\t5\n", "unknown format; allowed are text"),
        ("u.data", "1\t2\n", "fewer than 3 columns; allowed are at least user, item and rating"),
        ("u.data", "1\tx\ty\n", "line 1: rating 'y'; allowed are numeric"),
        ("u.data", "1\t1\t3\n\n1\t2\ty\n", "line 3: rating 'y'; allowed are numeric"),
        ("u.data", "1\t1\t\n", "line 1: a line without user, item or rating"),
        ("u.data", "1\t1\tinf\n", "line 1: a line without"),
        ("u.data", "1\t\t3\n", "line 1: a line without item"),
        ("ratings.csv", "userId,movieId,rating\n", "empty matrix"),
        ("ratings.csv", "userId,movieId,rating\n1,2\n", "fewer than 3 columns|a line without"),
        ("ratings.csv", "userId,movieId,rating\n3,1,2\n1,2\n", "fewer than|a line without"),
        ("ratings.dat", "1::1::5::0\n1::1::5::0::9::9\n", "ragged: rows of 4 to 6 cells"),
        ("ratings.dat", "1::1::5::0\n" * 2000 + "1::1::5::0::9\n", "not readable as .dat"),
        ("ratings.dat", "1:1:5\n", "fewer than 3 columns"),
    ],
)
def test_ratings_refuses(name, content, reason, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(Refused, match=rf"^problem\.path=.*{name}: .*({reason})") as refused:
        read(tmp_path / name)
    assert "\n" not in str(refused.value)


NAMES = st.one_of(
    st.integers(0, 40).map(str),
    st.sampled_from(["a", "é b", "x,y", "9007199254740993", "9007199254740992", "01", "-3"]),
)
RATINGS = st.lists(
    st.tuples(NAMES, NAMES, st.sampled_from([1.0, 2.5, 3.25, 4.0, 10.0])), min_size=1, max_size=8
)


@given(
    lines=RATINGS,
    separator=st.sampled_from([",", ";", "\t", "|"]),
    order=st.permutations(["user", "item", "rating", "timestamp"]),
    header=st.booleans(),
    index=st.booleans(),
    trailing=st.booleans(),
    decimal=st.sampled_from([".", ","]),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_no_ratings_are_read_as_others(
    tmp_path_factory, lines, separator, order, header, index, trailing, decimal
):
    if not header:
        order = ["user", "item", "rating", "timestamp"]
    content = io.StringIO()
    rows = csv.writer(content, delimiter=separator)
    if header:
        rows.writerow([""] * index + order)
    for i, (user, item, rating) in enumerate(lines):
        shown = str(rating).replace(".", "," if separator != "," else decimal)
        cells = {"user": user, "item": item, "rating": shown, "timestamp": str(TIME + i)}
        rows.writerow([str(i)] * index + [cells[name] for name in order] + [""] * trailing)
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text(content.getvalue(), encoding="utf-8", newline="")
    found = read_or_expect_key(read, path)
    if found is None:
        return
    users, items = ({line[at] for line in lines} for at in (0, 1))
    ordered = []
    for names in (users, items):
        whole = all(name.removeprefix("-").isdigit() and name != "01" for name in names)
        ordered.append(sorted(names, key=int if whole else None))
    expected = np.full((len(users), len(items)), NAN)
    for user, item, rating in lines:
        expected[ordered[0].index(user), ordered[1].index(item)] = rating
    assert_array_equal(found, expected)
