"""The options of ``problem=``: which matrix is factored, and what is known of the answer."""

import numpy as np
import pytest
import torch
from cases import OBSERVATION, PROBLEM_OPTIONS, READING, mask_of, options, synthetic
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits

from mfgd import problem
from mfgd.types import Refused

NAN = np.nan


def test_every_option_is_a_case():
    assert options("problem") == set(PROBLEM_OPTIONS)


@pytest.mark.parametrize("name", PROBLEM_OPTIONS)
def test_every_problem_keeps_its_contract(name, tmp_path):
    given = PROBLEM_OPTIONS[name](tmp_path)
    assert given.D.shape == given.shape or not given.observation.entrywise
    assert given.D.dtype == torch.float64
    assert torch.isfinite(given.D).all()
    if mask_of(given) is not None:
        assert set(mask_of(given).unique().tolist()) == {0.0, 1.0}
        assert (given.D[mask_of(given) == 0] == 0).all()
        assert int(given.count) == int((mask_of(given) == 1).sum()) < given.D.numel()
    else:
        assert given.count == given.D.numel()


TABLE = np.array([[1.5, NAN, -3.0, 0.1], [4e-9, 5.0, 6e12, NAN]])


def test_nan_becomes_a_mask():
    given = problem.from_matrix(TABLE)
    assert_array_equal(mask_of(given), [[1, 0, 1, 1], [1, 1, 1, 0]])
    assert_array_equal(given.D, [[1.5, 0, -3.0, 0.1], [4e-9, 5.0, 6e12, 0]])
    assert mask_of(problem.from_matrix(TABLE[:, [0, 2]])) is None


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float16, np.float32])
def test_every_dtype_becomes_double_precision(dtype):
    """A spectrum in single precision would put the optimum off by more than a tolerance."""
    data = np.array([[1, 0, 1], [1, 1, 1]], dtype=dtype)
    given = problem.from_matrix(data)
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
def test_matrices_that_are_refused(reason, data):
    with pytest.raises(Refused, match=f"^here: .*{reason}.*; allowed "):
        problem.from_matrix(data, "here")


def test_another_dtype_is_the_dtype_of_every_array():
    given = synthetic(observed=0.5).to(torch.float32, "cpu")
    assert given.D.dtype == mask_of(given).dtype == given.truth.target.dtype == torch.float32
    assert (given.rank, given.generated) == (3, True)


# Built in


def test_digits_are_the_digits_of_sklearn():
    assert_array_equal(problem.digits(**OBSERVATION).D, load_digits().data)


def test_notebook_has_the_printed_matrix():
    printed = [
        [0.0456, 0.1537, 0.0830, 0.0980],
        [0.2683, 0.4260, 0.4277, 0.4913],
        [0.4779, 0.7156, 0.7563, 0.8673],
    ]
    assert_array_equal(problem.notebook().D, printed)


def test_an_explicit_matrix_is_the_one_given():
    rows = [[None if np.isnan(x) else x for x in row] for row in TABLE.tolist()]
    given = problem.explicit(matrix=rows, **OBSERVATION)
    assert_array_equal(np.where(mask_of(given) == 1, given.D, NAN), TABLE)
    whole = problem.explicit(matrix=TABLE[:, [0, 2]].tolist(), **OBSERVATION)
    assert_array_equal(whole.D, TABLE[:, [0, 2]])
    assert_allclose(whole.spectrum, np.linalg.svd(TABLE[:, [0, 2]])[1], rtol=1e-14)


def test_held_out_ratings(tmp_path):
    def ratings(**keys) -> problem.Problem:
        return problem.ratings(path=str(tmp_path / "u.data"), heldout=0.25, **READING, **keys)

    lines = [(user, item, 1 + (user * item) % 5) for user in range(1, 21) for item in range(1, 11)]
    (tmp_path / "u.data").write_text("".join(f"{u}\t{i}\t{r}\t0\n" for u, i, r in lines))
    given = ratings(seed=0)
    assert int(given.count) == 150
    both = np.where(given.heldout.with_nan().isnan(), given.D, given.heldout.with_nan())
    assert_array_equal(both, [[1 + (u * i) % 5 for i in range(1, 11)] for u in range(1, 21)])
    other = ratings(seed=1)
    assert given.draws["heldout"] != other.draws["heldout"]


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


def test_spectrum_under_a_mask_is_the_spectrum_of_the_truth():
    given = synthetic(observed=0.5, rank=4, condition=2.0)
    assert_allclose(given.spectrum[:4], np.linspace(1, 0.5, 4), rtol=1e-12)
    assert problem.from_matrix(TABLE).spectrum is None


def test_singular_vectors_favour_no_direction():
    """A V drawn from U's seed would make a square truth symmetric."""
    D = synthetic(n=20, m=20, rank=1, condition=1.0).D
    assert (D - D.mT).norm() > 0.5


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_in_the_basis_of_the_identity_the_spectrum_is_the_diagonal(shape):
    n, m = shape
    given = synthetic(n=n, m=m, spectrum=[1.0, 3.0, 2.0], basis="identity")
    assert_array_equal(given.D, np.diag([3.0, 2.0, 1.0, 0, 0, 0])[:n, :m])
    assert given.draws == synthetic(n=n, m=m, spectrum=[3.0, 2.0, 1.0], basis="identity").draws


def test_a_symmetric_problem_has_its_spectrum_as_eigenvalues():
    D = synthetic(n=20, m=20, spectrum=[3.0, 1.0, 0.5], symmetric=True).D
    assert_allclose(D, D.mT, atol=1e-15)
    assert_allclose(np.linalg.eigvalsh(D)[::-1], [3.0, 1.0, 0.5, *[0] * 17], atol=1e-14)


def test_gaussian_entries_have_their_distribution():
    # The edge of the spectrum: Geman 1980. Its fluctuations are of order n^(-2/3) of it.
    n, m = 600, 400
    given = problem.gaussian(
        n=n, m=m, scale=0.5, symmetric=False, response="gaussian", **OBSERVATION
    )
    assert abs(given.D.mean()) < 4 * 0.5 / np.sqrt(n * m)
    assert given.D.std() == pytest.approx(0.5, rel=4 / np.sqrt(2 * n * m))
    assert given.spectrum[0] == pytest.approx(0.5 * (np.sqrt(n) + np.sqrt(m)), rel=0.03)
    assert given.spectrum[-1] == pytest.approx(0.5 * (np.sqrt(n) - np.sqrt(m)), rel=0.1)


def test_a_symmetric_gaussian_matrix_is_of_the_orthogonal_ensemble():
    D = problem.gaussian(
        n=500, m=500, scale=2.0, symmetric=True, response="gaussian", **OBSERVATION
    ).D.numpy()
    assert_array_equal(D, D.T)
    assert np.tril(D, -1)[np.tril_indices(500, -1)].std() == pytest.approx(2, rel=0.01)
    assert np.diag(D).std() == pytest.approx(2 * np.sqrt(2), rel=0.15)
    eigenvalues = np.linalg.eigvalsh(D)
    assert eigenvalues[-1] == pytest.approx(2 * 2 * np.sqrt(500), rel=0.03)
    assert eigenvalues[0] == pytest.approx(-2 * 2 * np.sqrt(500), rel=0.03)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (
            {"symmetric": True},
            r"problem\.symmetric=true with problem\.n=30, problem\.m=20: must be sq",
        ),
        ({"condition": 0.5}, r"problem\.condition=0\.5: must be at least 1"),
        ({"rank": 21}, r"problem\.rank=21: must be between 1 and min\(n, m\) = 20"),
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
        ({"heldout": 0.0005}, r"problem\.heldout=0\.0005: holds out 0 of 600 .* must be 1 to 599"),
        ({"heldout": 0.9, "observed": 2}, r"problem\.heldout=0\.9: holds out 2 of 2 "),
        ({"mask": "nowhere.npy"}, r"problem\.mask=nowhere\.npy: no such file"),
        ({"mask": "mask.xlsx"}, r"problem\.mask=mask\.xlsx: unknown format"),
        ({"observed": 1e-5}, r"problem\.observed=1e-05: no entry"),
    ],
)
def test_synthetic_refuses(keys, reason):
    with pytest.raises(Refused, match=f"^{reason}"):
        synthetic(**keys)
