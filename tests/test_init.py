"""Where descent starts."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from cases import INITS, PROBLEMS, M, N, factors, mask_of, options, problem
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import save_file
from scipy.linalg import subspace_angles

import mfgd
from mfgd.draws import stream
from mfgd.kernel import product
from mfgd.problem import from_matrix
from mfgd.types import Refused

GIVEN = ("explicit", "file", "notebook", "plane", "run")
DRAWN = [name for name in INITS if name not in GIVEN]
SPLIT = ["balanced", "spectral"]
TWO_ALONE = ("sketch",)
DEEP = [name for name in DRAWN if name not in TWO_ALONE]
DEPTHS = pytest.mark.parametrize("depth", [2, 3, 4])


def start(name: str, kind: str = "full", rank: int = 3, depth: int = 2, seed: int = 0, **keys):
    init = getattr(mfgd.init, name)(**INITS[name].keys | keys)
    return init(problem(kind), (N, *[rank] * (depth - 1), M), stream("init", seed))


def write(path, arrays: dict[str, torch.Tensor]) -> str:
    {".npz": lambda: np.savez(path, **arrays), ".pt": lambda: torch.save(arrays, path)}.get(
        path.suffix, lambda: save_file({name: X.contiguous() for name, X in arrays.items()}, path)
    )()
    return str(path)


def test_every_option_is_a_case():
    assert options("init") == set(INITS)


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("depth", [2, 3])
def test_shapes_and_dtype(name, kind, depth):
    made = start(name, kind, rank=2, depth=depth)
    assert [tuple(W.shape) for W in made] == list(pairwise((N, *[2] * (depth - 1), M)))
    assert {W.dtype for W in made} == {torch.float64}


@pytest.mark.parametrize("name", DEEP)
@DEPTHS
def test_scale_multiplies_one_draw(name, depth):
    # A power of two, so that rounding cannot excuse a difference.
    for W, V in zip(
        start(name, depth=depth, scale=1.0), start(name, depth=depth, scale=0.125), strict=True
    ):
        assert_array_equal(0.125 * W, V)


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("ratio", [0.0, 0.125, 8.0])
@DEPTHS
def test_ratio_multiplies_the_last_factor_of_one_draw(name, depth, ratio):
    *others, last = start(name, depth=depth, ratio=1.0)
    *same, scaled = start(name, depth=depth, ratio=ratio)
    assert all(torch.equal(W, V) for W, V in zip(others, same, strict=True))
    assert_array_equal(ratio * last, scaled)


@pytest.mark.parametrize("name", DEEP)
@DEPTHS
def test_a_start_that_no_gradient_leaves_is_refused(name, depth):
    with pytest.raises(Refused, match=r"^init\.scale=0 with .*two factors or more are 0"):
        start(name, depth=depth, scale=0.0)
    # One factor of zeros is left: autograd finds a gradient for it, and for no other factor.
    factors = [W.requires_grad_() for W in start(name, depth=depth, ratio=0.0)]
    (product(tuple(factors)) - problem("full").D).square().sum().backward()
    *others, last = (bool(W.grad.any()) for W in factors)
    assert last
    assert not any(others)


@pytest.mark.parametrize("name", [name for name in DRAWN if name not in ("spectral", "identity")])
def test_seed_moves_every_random_factor(name):
    same = zip(start(name, seed=0), start(name, seed=0), strict=True)
    assert all(torch.equal(W, V) for W, V in same)
    other = zip(start(name, seed=0), start(name, seed=1), strict=True)
    assert all((W != V).any() for W, V in other)


def test_uniform_and_normal_distributions():
    wide = from_matrix(torch.ones(300, 200))
    for name, mean, variance in (("uniform", 1.0, 1 / 3), ("normal", 0.0, 4.0)):
        init = getattr(mfgd.init, name)(scale=2.0, ratio=1.0)
        for W in init(wide, (300, 150, 200), stream("init", 0)):
            error = 4.5 / np.sqrt(W.numel())
            assert abs(W.mean() - mean) < error * np.sqrt(variance)
            assert abs(W.var() / variance - 1) < error * np.sqrt(2)
            assert name == "normal" or 0 <= W.min() < 0.001 < 1.999 < W.max() < 2


@DEPTHS
def test_orthogonal(depth):
    *inner, last = start("orthogonal", scale=2.0, depth=depth)
    for W in (*inner, last.mT):
        assert_allclose(W.mT @ W, 4 * np.eye(3), atol=1e-13)


def test_identity():
    C, F = start("identity", scale=2.0, rank=6)
    assert_array_equal(C, 2 * np.eye(N, 6))
    assert_array_equal(F, 2 * np.eye(6, M))


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("rank", [1, 3, 5])
@DEPTHS
def test_split_evenly(name, rank, depth):
    for W, V in pairwise(start(name, rank=rank, depth=depth, scale=1.0)):
        assert_allclose(W.mT @ W, V @ V.mT, atol=1e-12)


@DEPTHS
def test_balanced_is_the_product_of_the_normal_draw(depth):
    # Rounding is relative to the largest singular value of the product, some tens here.
    gaussian = product(start("normal", depth=depth, scale=1.0))
    assert_allclose(product(start("balanced", depth=depth, scale=1.0)), gaussian, atol=1e-12)


@pytest.mark.parametrize("kind", PROBLEMS)
@DEPTHS
def test_spectral_is_the_truncated_svd(kind, depth):
    given = problem(kind)
    mask = mask_of(given)
    share = 1 if mask is None else mask.numpy().mean()
    U, sigma, Vh = np.linalg.svd(given.D.numpy() / share)
    assert_allclose(
        product(start("spectral", kind, 2, depth, scale=1.0)),
        (U[:, :2] * sigma[:2]) @ Vh[:2],
        atol=1e-13,
    )


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("depth", [2, 3])
def test_rank_above_the_shape(name, depth):
    if INITS[name].reference:
        assert product(start(name, rank=M + 1, depth=depth)).shape == (N, M)
    else:
        with pytest.raises(
            Refused, match=rf"^rank=6 with init={name}: must be between 1 and min\(n, m\) = 5$"
        ):
            start(name, rank=M + 1, depth=depth)
    assert product(start(name, rank=M, depth=depth)).shape == (N, M)


def test_notebook():
    C, F = mfgd.init.notebook()(mfgd.problem.notebook(), (3, 2, 4), torch.Generator())
    assert_array_equal(C.numpy().round(4), [[0.9721, 0.2518], [0.0386, 0.5858], [0.4206, 0.2610]])
    assert_array_equal(
        F.numpy().round(4), [[0.8656, 0.0336, 0.1317, 0.2444], [0.4919, 0.4990, 0.4563, 0.7689]]
    )
    for widths, wrong in (
        ((3, 1, 4), "widths"),
        ((3, 2, 2, 4), "depth=3: allowed is depth=2"),
        ((4, 2, 3), "widths"),
    ):
        with pytest.raises(Refused, match=f"^init=notebook at {wrong}"):
            mfgd.init.notebook()(mfgd.problem.notebook(), widths, torch.Generator())


def draw_sketch(kind: str, seed: int = 0, **keys):
    """C, F, D over the share of observed entries, and what NumPy makes of the same numbers."""
    C, F = start("sketch", kind, 2, seed=seed, **{"scale": 1.0, "ratio": 1.0} | keys)
    given, numbers = problem(kind), stream("init", seed)
    D = given.D.numpy() * (N * M / float(given.count))
    phi = torch.randn((M, 2), generator=numbers, dtype=torch.float64).numpy() / np.sqrt(2)
    psi = torch.randn((2, M), generator=numbers, dtype=torch.float64).numpy() / np.sqrt(M)
    return C.numpy(), F.numpy(), D, phi, psi


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("power", [0, 1, 3])
def test_sketch_is_its_formula(kind, power):
    C, F, D, phi, psi = draw_sketch(kind, power=power, scale=0.5, ratio=0.25)
    turned = np.linalg.matrix_power(D @ D.T / np.linalg.norm(D, 2) ** 2, power)
    assert_allclose(C, 0.5 * turned @ D @ phi, rtol=1e-12, atol=1e-13)
    assert_allclose(F, 0.125 * psi, rtol=1e-14)


def test_a_sketch_has_the_gram_matrix_of_its_data_on_average():
    # E ΦΦᵀ = I, so that E CCᵀ = DDᵀ.
    draws = [draw_sketch("full", seed, power=0) for seed in range(3000)]
    D = draws[0][2]
    mean = np.mean([C @ C.T for C, *_ in draws], 0)
    assert_allclose(mean, D @ D.T, atol=0.1 * np.linalg.norm(D @ D.T))


def test_the_power_turns_a_sketch_to_the_leading_singular_vectors():
    D = problem("full").D.numpy()
    U, sigma, _ = np.linalg.svd(D)
    angles = [
        subspace_angles(draw_sketch("full", power=power)[0], U[:, :2]).max() for power in (0, 5, 10)
    ]
    # Each step multiplies what is outside by (σ₃/σ₂)² at least.
    assert angles[0] > 0.1
    assert np.tan(angles[2]) < 2 * np.tan(angles[1]) * (sigma[2] / sigma[1]) ** 10


def test_a_sketch_is_of_two_factors():
    with pytest.raises(Refused, match=r"^init=sketch at depth=3: allowed is depth=2"):
        start("sketch", depth=3)


@DEPTHS
def test_explicit_factors_are_those_given(depth):
    given = factors(depth=depth)
    made = start("explicit", depth=depth, factors=[W.tolist() for W in given], scale=0.5, ratio=4.0)
    for W, V, times in zip(made, given, [*[0.5] * (depth - 1), 2.0], strict=True):
        assert_array_equal(W, times * V.numpy())


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([[[1.0] * 3] * N], r"1 matrices; allowed with depth=2 are 2"),
        ([[[1.0] * 3] * N, [[1.0] * 3] * M], r"F is 5×3; allowed here is 3×5 with rank=3"),
        ([[[1.0] * 2] * N, [[1.0] * M] * 2], r"C is 7×2; allowed here is 7×3 with rank=3"),
        ([[[1.0] * 3] * N, [[1.0] * M, [1.0]]], r"F: ragged: rows of 1 to 5 numbers"),
        ([[], [[1.0] * M] * 3], r"C: empty"),
    ],
)
def test_explicit_factors_of_other_shapes_are_refused(given, reason):
    with pytest.raises(Refused, match=rf"^init\.factors: {reason}"):
        start("explicit", factors=given)


# Files


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
@pytest.mark.parametrize(("depth", "names"), [(2, ("C", "F")), (3, ("W1", "W2", "W3"))])
def test_file_round_trip(suffix, depth, names, tmp_path):
    kept = factors(depth=depth)
    # A tracked run's artifact has D beside the factors.
    path = write(
        tmp_path / f"factors{suffix}",
        dict(zip(names, kept, strict=True)) | {"D": problem("full").D},
    )
    for W, V in zip(start("file", depth=depth, path=path, scale=0.5), kept, strict=True):
        assert_array_equal(W, 0.5 * V)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_file_of_another_dtype_becomes_double_precision(dtype, tmp_path):
    kept = tuple((10 * W).to(dtype) for W in factors())
    made = start(
        "file", path=write(tmp_path / "factors.pt", dict(zip("CF", kept, strict=True))), scale=0.1
    )
    for W, V in zip(made, kept, strict=True):
        assert_array_equal(W, 0.1 * V.double())


C0, F0 = factors()
BROKEN = {
    "missing.npz": (None, "no such file"),
    "empty.pt": (b"", "an empty file"),
    "unknown.csv": (b"1,2", "unknown format; allowed are .npz .pt .safetensors"),
    "garbage.npz": (b"garbage", "not readable as .npz"),
    "garbage.pt": (b"garbage", "not readable as .pt"),
    "garbage.safetensors": (b"garbage", "not readable as .safetensors"),
    "no-F.npz": ({"C": C0}, "no array F in it; allowed are C, F"),
    "shape.npz": ({"C": C0[:, :2], "F": F0[:2]}, r"C is \(7, 2\); allowed here is \(7, 3\)"),
    "transposed.safetensors": ({"C": C0, "F": F0.mT}, r"F is \(5, 3\); allowed here is \(3, 5\)"),
    "infinite.pt": ({"C": C0, "F": F0 / 0}, "F has entries that are not finite"),
    "complex.pt": ({"C": C0, "F": F0 * 1j}, "F"),
    "text.npz": ({"C": C0, "F": np.full((3, 5), "x")}, ""),
    "text.pt": ({"C": C0, "F": "x"}, ""),
    "tensor.pt": (C0, ""),
    "list.pt": ([C0, F0], ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_file_refuses_in_one_line(name, tmp_path):
    content, reason = BROKEN[name]
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write(path, content)
    with pytest.raises(Refused, match=rf"^init\.path={path}: .*{reason}") as refused:
        start("file", path=str(path))
    assert "\n" not in str(refused.value)
