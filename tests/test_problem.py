"""What is factored: generated, built in, and read from files, with everything that is refused."""

import pickle
from itertools import pairwise

import numpy as np
import pandas
import pytest
import torch
from cases import OBSERVATION, PROBLEM_OPTIONS, SYNTHETIC, options
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.io import mmwrite
from scipy.sparse import coo_array
from scipy.stats import kstest
from sklearn.datasets import load_digits

from mfgd import files, problem
from mfgd.types import Refused

NAN = np.nan
TABLE = np.array([[1.5, NAN, -3.0, 0.1], [4e-9, 5.0, 6e12, NAN]])


def synthetic(**keys) -> problem.Problem:
    return problem.synthetic(**SYNTHETIC | {"n": 30, "m": 20} | keys)


def file(**keys) -> problem.Problem:
    return problem.file(**OBSERVATION | keys)


def ratings(**keys) -> problem.Problem:
    return problem.ratings(**{"heldout": 0.0, "seed": 0} | keys)


def observed(given: problem.Problem) -> np.ndarray:
    """The data with NaN for what is missing."""
    return given.D.numpy() if given.mask is None else np.where(given.mask == 1, given.D, NAN)


def test_every_option_is_a_case():
    assert options("problem") == set(PROBLEM_OPTIONS)


@pytest.mark.parametrize("name", PROBLEM_OPTIONS)
def test_every_problem_keeps_its_contract(name, tmp_path):
    given = PROBLEM_OPTIONS[name](tmp_path)
    assert given.D.shape == given.shape
    assert given.D.dtype == torch.float64
    assert torch.isfinite(given.D).all()
    if given.mask is not None:
        assert set(given.mask.unique().tolist()) == {0.0, 1.0}
        assert (given.D[given.mask == 0] == 0).all()
        assert int(given.count) == int((given.mask == 1).sum()) < given.D.numel()
    else:
        assert given.count == given.D.numel()


def test_of_splits_nan_into_a_mask():
    given = problem.of(TABLE)
    assert_array_equal(given.mask, [[1, 0, 1, 1], [1, 1, 1, 0]])
    assert_array_equal(given.D, [[1.5, 0, -3.0, 0.1], [4e-9, 5.0, 6e12, 0]])
    assert problem.of(TABLE[:, [0, 2]]).mask is None


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float16, np.float32])
def test_of_computes_in_double_precision(dtype):
    """A spectrum in single precision would put the optimum off by more than a tolerance."""
    data = np.array([[1, 0, 1], [1, 1, 1]], dtype=dtype)
    given = problem.of(data)
    assert given.D.dtype == torch.float64
    assert_array_equal(given.D, data)
    assert_allclose(given.spectrum, np.linalg.svd(data.astype(float), compute_uv=False), rtol=1e-14)


REFUSED = {
    "complex": np.ones((2, 2), dtype=complex),
    r"shape \(3,\)": np.ones(3),
    r"shape \(1, 2, 3\)": np.ones((1, 2, 3)),
    r"shape \(\)": 1.0,
    r"empty matrix of shape \(0, 3\)": np.ones((0, 3)),
    "1 infinite": [[1.0, np.inf]],
    "2 infinite": [[-np.inf, np.inf, NAN]],
    "every entry is missing": [[NAN, NAN]],
}


@pytest.mark.parametrize(("reason", "data"), REFUSED.items())
def test_of_refuses(reason, data):
    with pytest.raises(Refused, match=f"^here: .*{reason}.*; allowed "):
        problem.of(data, "here")


def test_moving_a_problem_to_another_dtype_moves_all_of_it():
    given = synthetic(observed=0.5).to(torch.float32, "cpu")
    assert given.D.dtype == given.mask.dtype == given.truth.dtype == torch.float32
    assert (given.rank, given.generated) == (3, True)


# Streams


def test_streams_are_reproducible_and_independent():
    def draw(name: str, seed: int) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=problem.stream(name, seed)).tolist())

    keys = [
        (name, seed)
        for name in ("init", "problem data", "problem noise", "problem mask")
        for seed in range(50)
    ]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert [draw(*key) for key in keys] == [draw(*key) for key in keys]
    samples = np.array(
        [torch.randn(500, generator=problem.stream(*key)).numpy() for key in keys[:40]]
    )
    assert abs(np.corrcoef(samples) - np.eye(40)).max() < 5 / np.sqrt(500)


@pytest.mark.parametrize(("n", "k"), [(6, 1), (6, 4), (6, 6)])
def test_orthonormal_columns(n, k):
    Q = problem.orthonormal(n, k, problem.stream("test", 0))
    assert_allclose(Q.mT @ Q, np.eye(k), atol=1e-14)


def test_orthonormal_is_haar():
    """QR alone is not: its signs follow from its algorithm. Under Haar E tr Q = 0 and E (tr Q)² = 1."""
    generator = problem.stream("haar", 0)
    traces = torch.stack(
        [problem.orthonormal(3, 3, generator).trace() for _ in range(4000)]
    ).numpy()
    assert abs(traces.mean()) < 4.5 / np.sqrt(4000)
    assert abs((traces**2).mean() - 1) < 4.5 * np.sqrt(2 / 4000)


# Built in


def test_digits_are_sklearn_s():
    assert_array_equal(problem.digits(**OBSERVATION).D, load_digits().data)


def test_notebook_is_what_was_printed():
    printed = [
        [0.0456, 0.1537, 0.0830, 0.0980],
        [0.2683, 0.4260, 0.4277, 0.4913],
        [0.4779, 0.7156, 0.7563, 0.8673],
    ]
    assert_array_equal(problem.notebook().D, printed)


# Synthetic


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"rank": 5, "condition": 8.0}, np.linspace(1, 1 / 8, 5)),
        ({"rank": 1, "condition": 8.0}, [1.0]),
        ({"rank": 20, "condition": 1.0}, np.ones(20)),
        ({"spectrum": [2.0, 7.0, 0.5], "condition": 8.0}, [7.0, 2.0, 0.5]),
    ],
)
@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_singular_values_are_the_spectrum(keys, expected, shape):
    given = synthetic(n=shape[0], m=shape[1], **keys)
    sigma = np.linalg.svd(given.D.numpy(), compute_uv=False)
    assert_allclose(sigma, np.pad(expected, (0, 20 - len(expected))), atol=1e-13)
    assert_allclose(given.spectrum, sigma, atol=1e-13)
    assert given.rank == len(expected)


def test_spectrum_under_a_mask_is_the_truth_s():
    given = synthetic(observed=0.5, rank=4, condition=2.0)
    assert_allclose(given.spectrum[:4], np.linspace(1, 0.5, 4), rtol=1e-12)
    assert problem.of(TABLE).spectrum is None


def test_singular_vectors_favour_no_direction():
    """A V drawn from U's seed would make a square truth symmetric."""
    D = synthetic(n=20, m=20, rank=1, condition=1.0).D
    assert (D - D.mT).norm() > 0.5


@pytest.mark.parametrize("noise", [0.01, 3.0])
def test_noise_is_gaussian_of_its_standard_deviation(noise):
    given = synthetic(n=200, m=100, noise=noise)
    z = ((given.D - given.truth) / noise).numpy()
    assert abs(z.mean()) < 4.5 / np.sqrt(z.size)
    assert abs(z.std() - 1) < 4.5 / np.sqrt(2 * z.size)
    assert abs((z**4).mean() - 3) < 4.5 * np.sqrt(96 / z.size)
    assert given.rank is None


def test_noise_knows_nothing_of_the_data():
    """Drawn from the data's own numbers it would lie in the column space of the truth, of dimension 20 in 30."""
    given = synthetic(rank=20, noise=1.0)
    noise = (given.D - given.truth).numpy()
    inside = np.linalg.qr(given.truth.numpy())[0].T @ noise
    share = (inside**2).sum() / (noise**2).sum()
    assert abs(share - 2 / 3) < 4.5 * np.sqrt(2 * (2 / 3) * (1 / 3) / 600)


@given(
    n=st.integers(1, 12),
    m=st.integers(2, 12),
    share=st.floats(0.05, 1.0),
    seed=st.integers(0, 9),
    data=st.data(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_exactly_the_observed_share_or_count(n, m, share, seed, data):
    count = data.draw(st.integers(2, n * m))
    for asked, expected in ((share, round(share * n * m)), (count, count)):
        assume(expected > 0)
        made = synthetic(n=n, m=m, rank=1, observed=asked, seed=seed)
        assert int(made.count) == expected
        assert (made.mask is None) == (expected == n * m)


def test_masks_are_nested_in_the_share():
    masks = [synthetic(observed=share).mask for share in (0.1, 0.3, 200, 0.9)]
    assert all((small <= large).all() for small, large in pairwise(masks))
    assert not torch.equal(masks[0], synthetic(observed=0.1, seed=1).mask)


def test_mask_is_uniform_over_entries():
    shares = torch.stack(
        [synthetic(n=6, m=5, observed=0.3, seed=seed).mask for seed in range(800)]
    ).mean(0)
    assert (shares - 0.3).abs().max() < 4.5 * np.sqrt(0.3 * 0.7 / 800)


def test_noise_and_mask_never_move_the_data():
    plain, noisy, masked = synthetic(), synthetic(noise=0.5), synthetic(observed=0.4)
    both, louder = synthetic(noise=0.5, observed=0.4), synthetic(noise=1.0)
    assert all(torch.equal(plain.D, other.truth) for other in (plain, noisy, masked, both, louder))
    assert torch.equal(masked.mask, both.mask)
    assert torch.equal(both.D, noisy.D * both.mask)
    assert_allclose(louder.D - plain.D, 2 * (noisy.D - plain.D), atol=1e-15)
    assert not torch.equal(plain.D, synthetic(seed=1).D)


# Observation

WHOLE = np.random.default_rng(1).normal(size=(30, 20))


def saved(folder, array, name="D.npy") -> str:
    np.save(folder / name, array)
    return str(folder / name)


def test_existing_seeds_draw_what_they_drew():
    """Written out by the first release: U, V, noise and mask of a seed stay."""
    given = synthetic(rank=4, condition=5.0, noise=0.3, observed=0.4, seed=7)
    data, noise, mask = (problem.stream(f"problem {kind}", 7) for kind in ("data", "noise", "mask"))
    U, V = (problem.orthonormal(size, 4, data) for size in (30, 20))
    truth = (U * torch.linspace(1, 0.2, 4, dtype=torch.float64)) @ V.mT
    order = torch.rand(600, generator=mask, dtype=torch.float64).argsort()
    assert_array_equal(given.mask.flatten().nonzero()[:, 0], order[:240].sort().values)
    assert_array_equal(given.D, (truth + 0.3 * problem.gaussian((30, 20), noise)) * given.mask)
    assert_array_equal(given.truth, truth)


@pytest.mark.parametrize("piece", [16, 64, 560, 592])
def test_a_draw_in_pieces_is_the_draw_in_one(piece, monkeypatch):
    keys = {"noise": 0.1, "observed": 0.4, "outliers": 0.2, "heldout": 0.3}
    whole = synthetic(**keys)
    monkeypatch.setattr(problem, "PIECE", piece)
    pieces = synthetic(**keys)
    assert_array_equal(pieces.D, whole.D)
    assert_array_equal(pieces.heldout, whole.heldout)
    assert pieces.draws == whole.draws


def test_signal_to_noise_ratio():
    given = synthetic(n=200, m=100, snr=4.0)
    power = float(given.truth.square().sum() / (given.D - given.truth).square().sum())
    assert abs(power / 4 - 1) < 4.5 * np.sqrt(2 / 20_000)
    assert_allclose(
        given.noise, np.sqrt((np.linspace(1, 0.25, 3) ** 2).sum() / 4 / 20_000), rtol=1e-12
    )
    assert_array_equal(given.D, synthetic(n=200, m=100, noise=given.noise).D)
    assert given.rank is None


def test_outliers_replace_exactly_their_share(tmp_path):
    """Largest where they lie is the largest of the truth times the scale; they are uniform between ± that."""
    given = synthetic(n=200, m=100, outliers=0.3, outlier_scale=2.0, noise=1e-9)
    struck = ((given.D - given.truth).abs() > 1e-7).numpy()
    bound = 2 * float(given.truth.abs().max())
    assert abs(struck.sum() - 6000) <= 1  # one may by chance be where it was
    drawn = given.D.numpy()[struck] / bound
    assert kstest(drawn, "uniform", (-1, 2)).pvalue > 1e-3
    assert (given.noise, given.rank) == (None, None)
    assert struck.mean(0).max() < 0.3 + 4.5 * np.sqrt(0.21 / 200)


def test_outliers_are_nested_and_scale_one_draw():
    few, many, loud = (
        synthetic(outliers=p, outlier_scale=s) for p, s in ((0.1, 1.0), (0.4, 1.0), (0.1, 3.0))
    )
    moved = few.truth != few.D
    assert_array_equal(many.D[moved], few.D[moved])
    assert_allclose(loud.D[moved], 3 * few.D[moved], rtol=1e-15)
    assert_array_equal(loud.D[~moved], loud.truth[~moved])
    assert few.draws["outliers"] == many.draws["outliers"]
    masked = synthetic(outliers=0.1, observed=0.5)
    assert_array_equal(masked.D, few.D * masked.mask)


def test_held_out_entries_are_a_share_of_the_observed_and_seen_nowhere_else():
    plain, given = (synthetic(observed=0.5, noise=0.1, heldout=share) for share in (0.0, 0.3))
    aside = ~given.heldout.isnan()
    assert int(aside.sum()) == 90
    assert int(given.count) == 210
    assert_array_equal(given.mask + aside, plain.mask)
    assert_array_equal(given.D + given.heldout.nan_to_num(), plain.D)
    assert (given.D[aside] == 0).all()
    assert (aside <= ~synthetic(observed=0.5, heldout=0.6).heldout.isnan()).all()
    assert not torch.equal(aside, ~synthetic(observed=0.5, heldout=0.3, seed=1).heldout.isnan())
    assert int(synthetic(heldout=0.1).count) == 540


def test_held_out_entries_are_uniform_over_the_observed():
    draws = [synthetic(n=6, m=5, observed=0.5, heldout=0.4, seed=seed) for seed in range(800)]
    shares = torch.stack([(~given.heldout.isnan()).double() for given in draws]).mean(0)
    assert (shares - 0.2).abs().max() < 4.5 * np.sqrt(0.2 * 0.8 / 800)


def test_each_draw_has_a_hash_that_others_do_not_move():
    assert set(synthetic().draws) == {"data"}
    assert problem.notebook().draws == {}
    base = {"noise": 0.1, "observed": 0.5, "outliers": 0.1, "heldout": 0.2}
    first = synthetic(**base).draws
    assert set(first) == {"data", "noise", "mask", "outliers", "heldout"}
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in first.values())
    for change in (
        {"noise": 0.7},
        {"noise": 0.0, "snr": 9.0},
        {"outliers": 0.3},
        {"outlier_scale": 5.0},
    ):
        assert synthetic(**base | change).draws == first
    assert {**synthetic(**base | {"observed": 0.8}).draws, "heldout": first["heldout"]} == first
    other = synthetic(**base | {"seed": 1}).draws
    assert all(other[kind] != first[kind] for kind in first)


def test_a_given_mask(tmp_path):
    mask = np.where(np.random.default_rng(0).random((30, 20)) < 0.4, -2.5, 0)
    mask[0, :5] = NAN
    given = synthetic(mask=saved(tmp_path, mask), noise=0.1)
    assert_array_equal(given.mask, (mask != 0) & ~np.isnan(mask))
    assert_array_equal(given.D, synthetic(noise=0.1).D * given.mask)
    assert set(given.draws) == {"data", "noise"}
    assert synthetic(mask=saved(tmp_path, np.ones((30, 20)))).mask is None
    save(tmp_path / "mask.csv", mask)
    assert_array_equal(synthetic(mask=str(tmp_path / "mask.csv")).mask, given.mask)


@pytest.mark.parametrize(
    "keys",
    [
        {"observed": 0.3},
        {"observed": 100},
        {"noise": 0.5},
        {"snr": 3.0},
        {"outliers": 0.2},
        {"noise": 0.1, "observed": 0.5, "heldout": 0.2},
    ],
    ids=str,
)
def test_given_data_hidden_or_disturbed_is_the_truth(keys, tmp_path):
    given = file(path=saved(tmp_path, WHOLE), **keys)
    assert_array_equal(given.truth, WHOLE)
    assert not given.generated
    assert given.noise == (
        None if "outliers" in keys else pytest.approx(keys.get("noise", given.noise))
    )
    if "observed" in keys and "noise" not in keys:
        assert_array_equal(given.D, WHOLE * given.mask.numpy())
        assert int(given.count) in (180, 100)
        assert given.noise == 0


def test_given_data_as_it_is_has_no_truth_but_itself(tmp_path):
    given = file(path=saved(tmp_path, WHOLE))
    assert (given.truth, given.mask, given.noise, given.draws) == (None, None, None, {})
    split = file(path=saved(tmp_path, WHOLE), heldout=0.2)
    assert split.truth is None
    assert int(split.count) == 480
    assert_array_equal(np.where(split.mask == 1, split.D, split.heldout), WHOLE)


def test_missing_entries_of_given_data_stay_missing(tmp_path):
    holed = np.where(np.random.default_rng(2).random(WHOLE.shape) < 0.5, WHOLE, NAN)
    size = int(np.isfinite(holed).sum())
    path = saved(tmp_path, holed)
    given = file(path=path, observed=0.5, noise=0.1, outliers=0.1, heldout=0.1)
    seen = (given.mask == 1).numpy() | ~given.heldout.isnan().numpy()
    assert seen.sum() == round(0.5 * size)
    assert np.isfinite(holed[seen]).all()
    assert (given.truth, given.noise) == (None, None)
    assert int(file(path=path, observed=17).count) == 17
    mask = saved(tmp_path, np.eye(30, 20), "mask.npy")
    assert_array_equal(file(path=path, mask=mask).mask, np.isfinite(holed) * np.eye(30, 20))


def test_digits_can_be_observed_in_part():
    given = problem.digits(**OBSERVATION | {"observed": 0.1, "noise": 1.0, "heldout": 0.5})
    assert_array_equal(given.truth, load_digits().data)
    assert int(given.count) == 11501 - round(0.5 * 11501)
    assert set(given.draws) == {"noise", "mask", "heldout"}


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"condition": 0.5}, r"problem\.condition=0\.5"),
        ({"rank": 21}, r"problem\.rank=21: allowed is 1 to min\(n, m\) = 20"),
        ({"spectrum": [1.0] * 21}, r"problem\.spectrum of length 21"),
        ({"spectrum": []}, r"problem\.spectrum of length 0"),
        ({"observed": 0.0}, r"problem\.observed=0\.0"),
        ({"observed": -3}, r"problem\.observed=-3"),
        ({"observed": 601}, r"problem\.observed=601: .* 600"),
        ({"observed": 2.5}, r"problem\.observed=2\.5"),
        ({"observed": NAN}, r"problem\.observed=nan"),
        (
            {"snr": 2.0, "noise": 0.1},
            r"problem\.snr=2\.0 beside problem\.noise=0\.1: allowed is one of the two",
        ),
        ({"heldout": 0.0005}, r"problem\.heldout=0\.0005: sets 0 of 600 .* allowed are 1 to 599"),
        ({"heldout": 0.9, "observed": 2}, r"problem\.heldout=0\.9: sets 2 of 2 "),
        ({"mask": "nowhere.npy"}, r"problem\.mask=nowhere\.npy: no such file"),
        ({"mask": "mask.xlsx"}, r"problem\.mask=mask\.xlsx: unknown format"),
        ({"observed": 1e-5}, r"problem\.observed=1e-05: no entry"),
    ],
)
def test_synthetic_refuses(keys, reason):
    with pytest.raises(Refused, match=f"^{reason}"):
        synthetic(**keys)


# Files


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


def test_the_formats_are_these():
    assert set(files._READERS) == {".npy", ".npz", ".csv", ".tsv", ".mtx", ".pt", ".parquet"}


ARRAYS = {"nan": TABLE, "full": np.nan_to_num(TABLE), "int": np.arange(6).reshape(3, 2)}


@pytest.mark.parametrize(
    ("suffix", "array"),
    # MatrixMarket has no missing entries.
    [(s, a) for s in files._READERS for a in ARRAYS if (s, a) != (".mtx", "nan")],
)
def test_round_trip(suffix, array, tmp_path):
    array = ARRAYS[array]
    given = file(path=save(tmp_path / f"data{suffix}", array))
    assert given.D.dtype == torch.float64
    assert_array_equal(observed(given), array)


def test_a_column_and_a_row_stay_what_they_are(tmp_path):
    for shape in ((3, 1), (1, 3)):
        assert file(path=save(tmp_path / "data.csv", np.ones(shape))).shape == shape


def test_suffix_in_capitals(tmp_path):
    assert file(path=save(tmp_path / "data.CSV", np.eye(2))).shape == (2, 2)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "data.npy", np.eye(2))
    assert file(path="~/data.npy").shape == (2, 2)


def test_sparse_matrix_market_has_zeros_where_it_lists_nothing(tmp_path):
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
def test_of_several_arrays_the_one_named_d(suffix, tmp_path):
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
    **{f"empty{suffix}": (b"", "an empty file") for suffix in files._READERS},
    **{f"garbage{suffix}": (b"\x00\x01\xff garbage \n", "") for suffix in files._READERS},
    **{f"words{suffix}": (b"hello\n", "") for suffix in files._READERS},
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


@pytest.mark.parametrize(
    ("array", "keys", "reason"),
    [
        (np.ones((20, 30)), {}, r"a mask of shape \(20, 30\); allowed is that of D, \(30, 20\)"),
        (np.zeros((30, 20)), {}, "observes no entry"),
        (
            np.ones((30, 20)),
            {"observed": 0.5},
            r"beside problem\.observed=0\.5: allowed is one of the two",
        ),
        (np.ones((30, 20)), {"observed": 7}, "beside problem.observed=7"),
    ],
)
def test_masks_that_are_refused(array, keys, reason, tmp_path):
    path = saved(tmp_path, array, "mask.npy")
    with pytest.raises(Refused, match=rf"^problem\.mask={path}:? .*{reason}"):
        synthetic(mask=path, **keys)


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


def test_ratings_held_out(tmp_path):
    lines = [(user, item, 1 + (user * item) % 5) for user in range(1, 21) for item in range(1, 11)]
    (tmp_path / "u.data").write_text("".join(f"{u}\t{i}\t{r}\t0\n" for u, i, r in lines))
    given = ratings(path=str(tmp_path / "u.data"), heldout=0.25)
    assert int(given.count) == 150
    both = np.where(given.heldout.isnan(), given.D, given.heldout)
    assert_array_equal(both, [[1 + (u * i) % 5 for i in range(1, 11)] for u in range(1, 21)])
    other = ratings(path=str(tmp_path / "u.data"), heldout=0.25, seed=1)
    assert given.draws["heldout"] != other.draws["heldout"]
