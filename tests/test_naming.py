import pytest
from test_config import composed

from mfgd.naming import label_points
from mfgd.palette import colour_of
from mfgd.tracked import mark_name


def labels(*lines: tuple[str, ...]):
    return [point.label for point in label_points([composed(*line) for line in lines])]


def test_a_run_is_called_by_what_varies_the_longest_last():
    found = labels(
        ("rank=2", "lr=0.01", "init=spectral"),
        ("rank=10", "lr=0.01", "init=normal"),
        ("rank=2", "lr=0.1", "init=uniform"),
    )
    assert [label.name for label in found] == ["2 0.01 spectral", "10 0.01 normal", "2 0.1 uniform"]
    assert found[0].title == "rank 2, lr 0.01, init spectral"


def test_colours_are_those_of_the_words_that_vary():
    found = labels(("rank=2", "init=normal"), ("rank=3", "init=normal"), ("rank=2", "init=uniform"))
    first, second, third = (label.colour for label in found)
    assert (first, third) == ("#0072B2", "#D55E00"), "Okabe and Ito's first two"
    assert second == first


def test_numbers_are_numbers_and_have_a_sequential_map():
    found = labels(("rank=2",), ("rank=10",), ("rank=5",))
    assert [label.numbers for label in found] == [{"rank": 2.0}, {"rank": 10.0}, {"rank": 5.0}]
    colours = colour_of([2, 5, 10])
    assert [label.colour for label in found] == [colours["2"], colours["10"], colours["5"]]


def test_keys_that_change_no_number_name_nothing():
    assert labels(("workers=1",), ("workers=2",)) == [None, None]


def test_a_key_that_has_words_too_is_no_number():
    found = labels(("lr=0.1",), ("lr=[0.1,0.2]",))
    assert [label.numbers for label in found] == [{}, {}]
    assert [label.name for label in found] == ["0.1", "[0.1, 0.2]"]


@pytest.mark.parametrize(
    ("outcome", "name"),
    [("converged", "2 a"), ("budget", "2 a"), ("diverged", "× 2 a"), ("error", "× 2 a")],
)
def test_a_lost_run_is_marked(outcome, name):
    assert mark_name("2 a", outcome) == name
