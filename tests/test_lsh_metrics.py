"""The two metrics: against a reference implementation, and on sets whose precision and recall are known."""

import itertools
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import reference_metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

import torch_fidelity_lsh
from torch_fidelity_lsh import LSHConfig, lsh_features_to_metric, lsh_knn_precision_recall, lsh_precision_recall
from torch_fidelity_lsh.metric.anchors import AnchorTables
from torch_fidelity_lsh.metric.coordinates import Coordinates
from torch_fidelity_lsh.metric.functional import FEWEST_ROWS
from torch_fidelity_lsh.metric.members import Members, content_hash

METRICS = pytest.mark.parametrize("measure", [lsh_precision_recall, lsh_knn_precision_recall], ids=["lsh", "lsh_knn"])
DIMENSIONS = pytest.mark.parametrize("dimension", [1, 8, 64])


def normal(n, dimension, seed, shift=0.0, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal((n, dimension)) + shift


def numbers(result):
    return result.to_dict()


# Against the reference implementation


@pytest.mark.parametrize("metric", ["lsh", "lsh_knn"])
@pytest.mark.parametrize(
    ("num_generated", "num_real", "dimension"),
    [(60, 50, 1), (40, 95, 3), (130, 60, 20), (90, 150, 30), (8, 9, 2), (200, 190, 24)],
)
def test_metrics_equal_what_the_page_of_definitions_says(metric, num_generated, num_real, dimension):
    generated, real = normal(num_generated, dimension, 1, shift=0.3), normal(num_real, dimension, 2)
    sides = [torch.from_numpy(side) for side in (generated, real)]
    scale = 2.0 ** -np.frexp(np.abs(real).max())[1]
    members = [Members.of(side, content_hash(side * scale), FEWEST_ROWS, 7).values.numpy() for side in sides]
    expected = reference_metrics.precision_recall(metric, generated, real, *members, seed=7)
    measure = {"lsh": lsh_precision_recall, "lsh_knn": lsh_knn_precision_recall}[metric]
    result = measure(generated, real, LSHConfig(seed=7))
    assert (result.precision_unclipped, result.recall_unclipped) == pytest.approx(expected, abs=1e-6)


def test_the_nearer_two_points_are_the_likelier_they_share_a_cell():
    """What makes nearest-anchor cells a locality-sensitive hash: the collision curve falls with distance."""
    points = torch.from_numpy(normal(4000, 16, 1))
    coordinates = Coordinates.fit(points)
    tables = AnchorTables.draw(points, coordinates, 64, 200, np.random.default_rng(0))
    cells, _ = tables.nearest(coordinates(points[:600]))
    collisions = (cells[:, None] == cells[None]).double().mean(2)
    distances = torch.cdist(points[:600], points[:600])
    edges = torch.tensor([1e-9, 3.5, 4.5, 5.5, 6.5, 8.0, 12.0])
    curve = [
        float(collisions[(distances > low) & (distances <= high)].mean()) for low, high in itertools.pairwise(edges)
    ]
    assert all(near > far for near, far in itertools.pairwise(curve))
    assert curve[0] > 5 * curve[-1]


# What the numbers mean


CONFIG = LSHConfig(num_tables=8, neighborhood=2)


@METRICS
@DIMENSIONS
def test_sets_of_one_distribution_score_one(measure, dimension):
    results = [measure(normal(1000, dimension, s), normal(1000, dimension, s + 50)) for s in range(6)]
    # The mean of twelve has an error of .01 to .02; on a line neighbours taken for near copies add .02 to .04.
    values = [value for r in results for value in (r.precision_unclipped, r.recall_unclipped)]
    assert np.mean(values) == pytest.approx(1, abs=0.06 if dimension == 1 else 0.04)
    assert all(r.precision <= 1 and r.recall <= 1 for r in results)


@METRICS
def test_dimension_and_sample_size_do_not_move_the_score_of_one_distribution(measure):
    for n, dimension in ((500, 1024), (4000, 16)):
        result = measure(normal(n, dimension, 1), normal(n, dimension, 2))
        assert min(result.precision, result.recall) > 0.9


@METRICS
@DIMENSIONS
def test_sets_far_apart_score_zero(measure, dimension):
    result = measure(normal(500, dimension, 1, shift=20.0), normal(500, dimension, 2))
    assert (result.precision, result.recall, result.f_score) == (0.0, 0.0, 0.0)
    assert max(result.precision_pvalue, result.recall_pvalue) < 1e-4


@METRICS
def test_mode_collapse_keeps_precision_and_loses_recall(measure):
    values = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        modes = 4 * rng.standard_normal((10, 16))
        real = modes[rng.integers(10, size=2000)] + rng.standard_normal((2000, 16))
        collapsed = modes[rng.integers(2, size=2000)] + rng.standard_normal((2000, 16))
        result, swapped = measure(collapsed, real), measure(real, collapsed)
        assert swapped.precision_unclipped == pytest.approx(result.recall_unclipped, abs=0.02)
        assert swapped.recall_unclipped == pytest.approx(result.precision_unclipped, abs=0.02)
        values.append((result.precision_unclipped, result.recall))
    precision, recall = np.mean(values, axis=0)
    assert precision == pytest.approx(1, abs=0.07)
    assert recall == pytest.approx(0.2, abs=0.03)


@METRICS
@DIMENSIONS
@pytest.mark.parametrize("side", ["generated", "real"])
@pytest.mark.parametrize(("shift", "move"), [(10, 0.01), (0, 0.05)])
def test_one_outlier_moves_nothing(measure, dimension, side, shift, move):
    generated, real = normal(1000, dimension, 1, shift=shift / dimension**0.5), normal(1000, dimension, 2)
    before = measure(generated, real)
    outlier = {"generated": generated, "real": real}[side]
    outlier[0] = (shift or 10) / 2 / dimension**0.5
    after = measure(generated, real)
    assert after.precision == pytest.approx(before.precision, abs=move)
    assert after.recall == pytest.approx(before.recall, abs=move)


@METRICS
@DIMENSIONS
@pytest.mark.parametrize("side", ["generated", "real"])
def test_one_outlier_beyond_the_other_set_moves_nothing(measure, dimension, side):
    """It would vouch for all that lies between it and its own set."""
    values = []
    for seed in range(6):
        generated, real = normal(1000, dimension, 2 * seed, shift=6.0), normal(1000, dimension, 2 * seed + 1)
        {"generated": generated, "real": real}[side][0] = {"generated": -3, "real": 9}[side]
        result = measure(generated, real)
        values.append((result.precision, result.recall))
    assert np.mean(values, axis=0).max() <= 0.01
    assert np.max(values) <= 0.03


@METRICS
def test_one_outlier_a_million_away_moves_little(measure):
    generated, real = normal(1000, 16, 1), normal(1000, 16, 2)
    before = measure(generated, real)
    real[0] = 1e6
    after = measure(generated, real)
    assert after.precision == pytest.approx(before.precision, abs=0.05)
    assert after.recall == pytest.approx(before.recall, abs=0.05)


@METRICS
def test_samples_in_a_dense_spot_do_not_pay_for_those_far_away(measure):
    rng = np.random.default_rng(0)
    spread, dense = rng.standard_normal((1000, 16)), 0.05 * rng.standard_normal((1000, 16)) + 5
    generated = np.concatenate([0.05 * rng.standard_normal((500, 16)) + 5, rng.standard_normal((500, 16)) + 20])
    result = measure(generated, np.concatenate([spread, dense]))
    assert result.precision == pytest.approx(0.5, abs=0.08)


@METRICS
@pytest.mark.parametrize(("num_generated", "num_real"), [(8000, 1000), (1000, 8000)])
def test_unequal_sizes_do_not_hide_missing_modes(measure, num_generated, num_real):
    rng = np.random.default_rng(0)

    def draw(n, num_modes):
        centres = 5 * np.eye(10, 32)[rng.integers(num_modes, size=n)]
        return centres + rng.standard_normal((n, 32))

    result = measure(draw(num_generated, 5), draw(num_real, 10))
    assert result.precision > 0.9
    assert result.recall == pytest.approx(0.5, abs=0.08)


@METRICS
def test_known_share_of_wrong_digits_is_found(measure):
    images, labels = load_digits(return_X_y=True)
    right, wrong = images[labels < 5], images[labels >= 5]
    right = np.random.default_rng(0).permutation(right)
    real = right[:450]
    shares = np.array([0.0, 0.25, 0.5, 1.0])
    found = []
    for share in shares:
        cut = round(share * 400)
        found.append(measure(np.concatenate([right[450 : 850 - cut], wrong[:cut]]), real).precision)
    np.testing.assert_allclose(found, 1 - shares, atol=0.15)


@METRICS
def test_lowest_memberships_are_the_outliers(measure):
    generated = normal(500, 16, 1)
    generated[:20] += 10
    result = measure(generated, normal(500, 16, 2))
    # Out of reach, as up to a sixth of a set may be by lsh_knn: in the middle of these.
    assert result.precision_memberships[:20].max() < 0.1
    assert result.precision_memberships[20:].mean() == pytest.approx(0.5, abs=0.05)
    assert result.precision_memberships.shape == result.recall_memberships.shape == (500,)


@METRICS
def test_standard_error_covers_the_spread_of_repeated_measurements(measure):
    def half_far(seed):
        far = np.random.default_rng(seed).random((600, 1)) < 0.5
        return np.where(far, normal(600, 16, seed, shift=4), normal(600, 16, seed))

    results = [measure(half_far(s), normal(600, 16, s + 99)) for s in range(16)]
    spread = np.std([r.precision for r in results], ddof=1)
    stated = np.mean([r.precision_stderr for r in results])
    assert 0.6 * spread < stated < 2.5 * spread
    mean = np.mean([r.precision for r in results])
    assert mean == pytest.approx(0.5, abs=0.04)
    assert sum(low <= mean <= high for low, high in (r.interval("precision") for r in results)) >= 13


def test_an_interval_of_no_number_is_refused_by_name():
    result = lsh_precision_recall(normal(20, 4, 0), normal(20, 4, 1))
    with pytest.raises(ValueError, match="got 'fscore'; did you mean \"f_score\""):
        result.interval("fscore")


@METRICS
def test_intervals_of_two_halves_of_one_set_hold_one(measure):
    held = 0
    for seed in range(20):
        halves = normal(1200, 16, seed)
        result = measure(halves[:600], halves[600:])
        held += sum(result.interval(name)[1] == 1 for name in ("precision", "recall"))
    assert held >= 36


@METRICS
def test_a_few_percent_off_the_manifold_are_found(measure):
    """The value falls by about as much, and the test notices; without strangers it seldom does."""
    alarms, values = [], []
    for seed in range(6):
        real, clean = normal(3000, 16, seed), normal(3000, 16, seed + 100)
        off = clean.copy()
        off[:150] = normal(150, 16, seed + 200, shift=1.5)
        results = [measure(side, real) for side in (clean, off)]
        alarms.append([r.precision_pvalue < 0.05 for r in results])
        values.append(results[0].precision_unclipped - results[1].precision_unclipped)
    false, found = np.sum(alarms, axis=0)
    assert false <= 1
    assert found >= 5
    assert np.mean(values) == pytest.approx(0.05, abs=0.015)


@METRICS
@pytest.mark.parametrize("dimension", [16, 64])
@pytest.mark.parametrize("near_copies", [False, True])
def test_a_small_class_beside_big_ones_keeps_its_precision(measure, dimension, near_copies):
    """A pure loss of diversity must not read as a loss of quality (sizes and spreads differ twentyfold)."""
    far = 20 if dimension == 64 else 10
    axes = far * np.eye(dimension)
    results = []
    for seed in range(6):
        rng = np.random.default_rng([seed, dimension])

        def draw(n, mean, spread, rng=rng):
            return mean + spread * rng.standard_normal((n, dimension))

        generated, same = (draw(135, axes[0], 1.3) for _ in range(2))
        big = draw(2200, 0, 1)
        if near_copies:
            big = np.concatenate([big[:440] + 0.1 * rng.standard_normal((440, dimension)) for _ in range(5)])
        real = np.concatenate([same, big, draw(400, axes[1], 1.2), draw(800, axes[2], 1.5)])
        results.append(measure(generated, real))
    assert np.mean([r.precision_unclipped for r in results]) == pytest.approx(1, abs=0.2)
    assert np.mean([r.recall for r in results]) < 0.08


@METRICS
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("side", [0, 1])
def test_rows_given_twice_change_nothing(measure, share, side):
    """A folder copied twice, a data set with duplicates."""
    sides = [normal(1200, 64, 1), normal(1200, 64, 2)]
    before = measure(*sides)
    sides[side] = np.concatenate([sides[side], sides[side][: round(share * 1200)]])
    after = measure(*sides)
    assert after.precision_unclipped == pytest.approx(before.precision_unclipped, abs=0.03)
    assert after.recall_unclipped == pytest.approx(before.recall_unclipped, abs=0.03)
    assert after.protocol[("repeats_generated", "repeats_real")[side]] == pytest.approx(share / (1 + share))


@METRICS
@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("side", [0, 1])
def test_rows_with_a_near_copy_change_little_and_are_reported(measure, share, side):
    """The same pictures saved twice, with other bytes."""
    values, name = [], ("generated", "real")[side]
    for seed in range(4):
        sides = [normal(1200, 64, seed), normal(1200, 64, seed + 50)]
        copied = sides[side][: round(share * 1200)]
        sides[side] = np.concatenate([sides[side], copied + 0.05 * normal(len(copied), 64, seed + 99)])
        with pytest.warns(UserWarning, match=f"of the {name} samples nearly repeat another one"):
            result = measure(*sides)
        values.append((result.precision_unclipped, result.recall_unclipped))
        assert result.protocol[f"near_copies_{name}"] == pytest.approx(share / (1 + share), abs=0.03)
    np.testing.assert_allclose(np.mean(values, axis=0), 1, atol=0.08)


@pytest.mark.parametrize("dimension", [1, 2, 8, 64])
def test_neighbours_are_not_taken_for_near_copies(dimension):
    result = lsh_precision_recall(normal(1000, dimension, 1), normal(1000, dimension, 2))
    assert result.protocol["near_copies_generated"] < 0.03
    assert result.protocol["near_copies_real"] < 0.03


@METRICS
def test_samples_far_from_the_real_ones_have_not_collapsed(measure):
    result = measure(normal(600, 64, 1, shift=3), normal(600, 64, 2))
    assert result.precision == 0
    assert result.effective_generated > 500


def test_a_collapsed_side_has_few_effective_samples_and_says_so():
    real = normal(1000, 64, 1)
    collapsed = real[0] + 0.01 * normal(1000, 64, 2)
    with pytest.warns(UserWarning, match="1000 generated samples lie so close together.* may have collapsed"):
        result = lsh_precision_recall(collapsed, real)
    assert result.effective_generated < 20
    assert result.effective_real > 500
    assert result.precision_stderr > 0.1
    assert result.recall < 0.02


@METRICS
@pytest.mark.filterwarnings("ignore:.*may have collapsed")
def test_a_collapsed_generator_inside_the_support_has_precision(measure):
    """One spot passes or fails as a whole: asked at a large lambda, it would toss a coin."""
    real = normal(1000, 8, 1)
    from_the_middle = np.linalg.norm(real, axis=1).argsort()[100:600:100]
    spots = [real[i] + 1e-3 * normal(500, 8, i) for i in from_the_middle]
    for spot in spots:
        result = measure(spot, real)
        assert result.precision > 0.8
        assert result.recall < 0.05


@METRICS
def test_one_class_of_many_is_inside(measure):
    """A generator that dropped nine of ten modes, dense and sparse ones, loses recall alone."""
    rng = np.random.default_rng(0)
    centres, spreads = 6 * rng.standard_normal((10, 16)), np.geomspace(0.5, 2, 10)
    labels = rng.integers(10, size=3000)
    real = centres[labels] + spreads[labels, None] * rng.standard_normal((3000, 16))
    for label in (0, 9):
        result = measure(centres[label] + spreads[label] * rng.standard_normal((300, 16)), real)
        assert result.precision > 0.8
        assert result.recall < 0.25


# Invariance


@METRICS
def test_batch_size_changes_nothing(measure):
    generated, real = normal(700, 300, 1).astype(np.float32), normal(900, 300, 2).astype(np.float32)
    results = [measure(generated, real, LSHConfig(batch_size=size)) for size in (1, 37, 5000)]
    assert numbers(results[0]) == numbers(results[1]) == numbers(results[2])


@METRICS
def test_number_of_threads_changes_nothing(measure, monkeypatch):
    monkeypatch.setattr("torch_fidelity_lsh.metric.parallel.FEW_ROWS", 0)
    generated, real = normal(700, 300, 1).astype(np.float32), normal(900, 300, 2).astype(np.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = measure(generated, real)
        torch.set_num_threads(3)
        three = measure(generated, real)
    finally:
        torch.set_num_threads(before)
    assert numbers(one) == numbers(three)


@METRICS
def test_order_of_samples_changes_nothing_but_the_order_of_memberships(measure):
    generated, real = normal(900, 20, 1, shift=0.2), normal(600, 20, 2)
    order = np.random.default_rng(0).permutation(900)
    first, second = measure(generated, real), measure(generated[order], real[::-1].copy())
    assert numbers(first) == numbers(second)
    assert torch.equal(first.precision_memberships[order], second.precision_memberships)
    assert torch.equal(first.recall_memberships.flip(0), second.recall_memberships)


@METRICS
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dimension", [3, 300])
def test_a_gpu_gives_the_same_numbers(measure, dimension):
    sides = [torch.from_numpy(normal(900, dimension, seed)) for seed in (1, 2)]
    on_cpu, on_gpu = measure(*sides), measure(*(side.cuda() for side in sides))
    assert numbers(on_gpu) == pytest.approx(numbers(on_cpu), rel=1e-12)


def test_another_process_gives_the_same_numbers():
    program = (
        "import numpy as np; from torch_fidelity_lsh import lsh_precision_recall;"
        "print(lsh_precision_recall(*np.random.default_rng(0).standard_normal((2, 300, 20))).to_dict())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    here = lsh_precision_recall(*np.random.default_rng(0).standard_normal((2, 300, 20)))
    assert done.stdout == f"{here.to_dict()}\n"


@METRICS
def test_seed_changes_the_numbers_a_little(measure):
    generated, real = normal(1000, 32, 1, shift=0.15), normal(1000, 32, 2)
    values = [measure(generated, real, LSHConfig(seed=seed)).precision for seed in range(6)]
    assert 0 < np.std(values) < 0.05


sets = st.builds(
    lambda n, m, d, seed, shift: (normal(n, d, seed, shift=shift), normal(m, d, seed + 1)),
    st.integers(8, 60),
    st.integers(8, 60),
    st.integers(1, 12),
    st.integers(0, 1000),
    st.floats(0, 3),
)


@METRICS
@settings(max_examples=25, deadline=None)
@given(pair=sets, exponent=st.integers(-30, 30))
def test_scale_changes_nothing(measure, pair, exponent):
    scaled = [2.0**exponent * side for side in pair]
    assert numbers(measure(*scaled, CONFIG)) == numbers(measure(*pair, CONFIG))


@METRICS
def test_translation_changes_no_more_than_another_seed(measure):
    """Other rows are held out."""
    generated, real = normal(1000, 16, 1, shift=0.1), normal(1000, 16, 2)
    before, after = measure(generated, real), measure(generated + 7, real + 7)
    assert abs(after.precision_unclipped - before.precision_unclipped) < 3 * before.precision_stderr
    assert abs(after.recall_unclipped - before.recall_unclipped) < 3 * before.recall_stderr


@METRICS
@settings(max_examples=25, deadline=None)
@given(pair=sets)
def test_all_numbers_are_in_range(measure, pair):
    result = measure(*pair, CONFIG)
    assert all(np.isfinite(value) for value in numbers(result).values())
    for value in (result.precision, result.recall, result.f_score, result.precision_pvalue, result.recall_pvalue):
        assert 0 <= value <= 1
    assert 0 < result.effective_generated <= len(pair[0])
    assert 0 < result.effective_real <= len(pair[1])
    assert min(result.precision_stderr, result.recall_stderr) >= 0


# Degenerate sets


@METRICS
def test_identical_constant_sets_score_one(measure):
    constant = np.full((20, 5), 0.1, dtype=np.float32)
    result = measure(constant, constant[:17].copy())
    assert (result.precision, result.recall) == (1.0, 1.0)


@METRICS
def test_different_constants_score_zero(measure):
    result = measure(np.full((20, 5), 0.1), np.full((20, 5), 0.2))
    assert (result.precision, result.recall) == (0.0, 0.0)


@METRICS
def test_rows_that_differ_by_less_than_coordinates_resolve_are_measured(measure):
    """A few samples far out set the scale."""
    tiny = 1e-9 * normal(200, 3, 1)
    tiny[:110] += 1
    result = measure(tiny, 1e-9 * normal(200, 3, 2) + (np.arange(200) < 110)[:, None])
    assert np.isfinite(list(numbers(result).values())).all()


@METRICS
def test_varied_samples_miss_a_constant_support(measure):
    result = measure(normal(50, 5, 1), np.zeros((50, 5)))
    assert result.precision == 0.0


@METRICS
def test_repeated_rows_count_as_samples(measure):
    generated, real = normal(100, 8, 1), normal(100, 8, 2)
    result = measure(np.repeat(generated, 5, axis=0), np.repeat(real, 5, axis=0))
    assert np.isfinite(list(numbers(result).values())).all()
    same = measure(np.repeat(real, 5, axis=0), np.repeat(real, 5, axis=0))
    assert (same.precision, same.recall) == (1.0, 1.0)


@METRICS
def test_few_samples_give_a_number(measure):
    result = measure(normal(8, 3, 1), normal(8, 3, 2))
    assert np.isfinite(list(numbers(result).values())).all()


@METRICS
@pytest.mark.parametrize(
    ("generated", "real", "message"),
    [
        (
            np.array([[0.0, np.nan]] * 17),
            np.zeros((17, 2)),
            "features_generated holds NaN or infinite values in 17",
        ),
        (np.zeros((17, 2)), np.array([[0.0, np.inf]] * 17), "features_real holds NaN or infinite values"),
        (np.zeros((17, 2)), np.zeros((17, 3)), r"must have the same D; got shapes \(17, 2\) and \(17, 3\)"),
        (np.zeros((17, 2), dtype=int), np.zeros((17, 2)), "floating-point numbers; got dtype int64"),
        (torch.zeros(17, 2, dtype=torch.uint8), torch.zeros(17, 2), "floating-point numbers; got dtype torch.uint8"),
        (np.zeros(17), np.zeros((17, 2)), r"features_generated must be N x D with .* got shape \(17,\)"),
        (np.zeros((17, 0)), np.zeros((17, 0)), r"got shape \(17, 0\)"),
        (np.zeros((1, 2)), np.zeros((17, 2)), r"features_generated must hold at least 8 samples; got 1"),
        (np.zeros((17, 2)), np.zeros((0, 2)), r"features_real must be N x D with .* got shape \(0, 2\)"),
        ([[0.0]] * 17, np.zeros((17, 1)), "features_generated must be a tensor or a numpy array; got list"),
    ],
)
def test_unusable_features_are_refused(measure, generated, real, message):
    with pytest.raises(ValueError, match=message):
        measure(generated, real)


def test_sparse_modes_belong_to_the_support_as_much_as_dense_ones():
    rng = np.random.default_rng(1)
    modes, spreads = 4 * rng.standard_normal((10, 16)), np.exp(rng.uniform(-0.7, 0.7, 10))
    chosen = rng.integers(10, size=2000)
    real = modes[chosen] + spreads[chosen, None] * rng.standard_normal((2000, 16))
    sparse = int(spreads.argmax())
    generated = modes[sparse] + spreads[sparse] * rng.standard_normal((2000, 16))
    assert lsh_precision_recall(generated, real).precision > 0.8
    assert lsh_knn_precision_recall(generated, real).precision > 0.7


# Types and shapes of what goes in and comes out


@METRICS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_all_float_types_and_arrays_are_taken(measure, dtype):
    generated, real = (torch.from_numpy(normal(60, 4, s)).to(dtype) for s in (1, 2))
    expected = measure(generated.double().numpy(), real.double().numpy())
    assert numbers(measure(generated.requires_grad_(), real)) == numbers(expected)


def test_result_states_its_protocol_and_reads_well():
    result = lsh_precision_recall(normal(80, 4, 1), normal(90, 4, 2), LSHConfig(num_tables=24, seed=7))
    assert result.protocol["num_generated"] == 80
    assert result.protocol["num_real"] == 90
    assert (result.protocol["num_tables"], result.protocol["storey_lambda"], result.protocol["seed"]) == (24, 0.65, 7)
    assert result.protocol["effective_real"] == result.effective_real
    assert result.protocol["versions"]["numpy"] == np.__version__
    assert repr(result).startswith("lsh: precision ")
    assert "(80 generated, 90 real)" in repr(result)


@pytest.mark.parametrize("metric", ["lsh", "lsh_knn"])
def test_result_keys_are_the_constants(metric):
    function = getattr(torch_fidelity_lsh, f"{metric}_features_to_metric")
    values = function(normal(50, 3, 1), normal(50, 3, 2))
    constants = {
        getattr(torch_fidelity_lsh, f"KEY_METRIC_{metric.upper()}_{number}")
        for number in ("PRECISION", "RECALL", "F_SCORE")
    }
    assert constants <= values.keys()
    assert all(type(value) is float for value in values.values())


def test_options_reach_the_metric():
    sides = normal(80, 4, 1), normal(80, 4, 2)
    options = {"lsh_num_tables": 24, "lsh_storey_lambda": 0.5, "rng_seed": 5}
    expected = lsh_precision_recall(*sides, LSHConfig(num_tables=24, storey_lambda=0.5, seed=5)).to_dict()
    assert lsh_features_to_metric(*sides, **options) == expected


@pytest.mark.parametrize("name", ["num_tables", "lsh_num_table"])
def test_mistyped_option_is_refused_with_the_nearest_name(name):
    with pytest.raises(ValueError, match=f'Unknown keyword "{name}"; did you mean "lsh_num_tables"'):
        lsh_features_to_metric(normal(80, 4, 1), normal(80, 4, 2), **{name: 24})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"neighborhood": 1}, "neighborhood must be an integer of at least 2; got 1"),
        ({"num_components": 2.0}, "num_components must be an integer of at least 1; got 2.0"),
        ({"num_tables": True}, "num_tables must be an integer"),
        ({"storey_lambda": 1}, "storey_lambda must be a number between 0 and 1, both excluded; got 1"),
        ({"storey_lambda": float("nan")}, "storey_lambda must be a number between 0 and 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1; got 0"),
        ({"seed": -1}, "seed must be an integer of at least 0; got -1"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        LSHConfig(**setting)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@METRICS
def test_gpu_gives_the_numbers_of_the_cpu(measure):
    generated, real = (torch.from_numpy(normal(700, 300, s)) for s in (1, 2))
    assert numbers(measure(generated.cuda(), real.cuda())) == numbers(measure(generated, real))


def test_sources_that_were_not_installed_measure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "torch-fidelity-lsh":
            raise PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr("torch_fidelity_lsh.metric.functional.version", version)
    generated, real = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0))
    assert lsh_precision_recall(generated, real).protocol["versions"]["torch-fidelity-lsh"] == "not installed"
