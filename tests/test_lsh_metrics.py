"""The two metrics: against brute force, and on sets whose precision and recall are known."""

import subprocess
import sys

import brute_force
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

import torch_fidelity_lsh
from torch_fidelity_lsh import LSHConfig, lsh_features_to_metric, lsh_knn_precision_recall, lsh_precision_recall

METRICS = pytest.mark.parametrize("measure", [lsh_precision_recall, lsh_knn_precision_recall], ids=["lsh", "lsh_knn"])
DIMENSIONS = pytest.mark.parametrize("dimension", [1, 8, 64])


def normal(n, dimension, seed, shift=0.0, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal((n, dimension)) + shift


def numbers(result):
    return result.to_dict()


# Against brute force


SIZES = pytest.mark.parametrize(("num_generated", "num_real"), [(30, 30), (41, 23), (17, 36)])
CONFIG = LSHConfig(num_tables=8, num_hashes=3, neighborhood=2)


@SIZES
@pytest.mark.parametrize("dimension", [1, 3, 200])
@pytest.mark.parametrize("coordinates", ["polar", "euclidean"])
def test_lsh_equals_brute_force(num_generated, num_real, dimension, coordinates):
    generated, real = normal(num_generated, dimension, 1, shift=0.2), normal(num_real, dimension, 2)
    config = LSHConfig(num_tables=8, num_hashes=3, coordinates=coordinates)
    result = lsh_precision_recall(generated, real, config)
    widths = result.protocol["bucket_widths"]
    precision, recall, memberships_1, memberships_2 = brute_force.lsh(generated, real, config, widths)
    assert (result.precision, result.recall) == pytest.approx((precision, recall), abs=1e-12)
    np.testing.assert_allclose(result.precision_memberships, memberships_1, atol=1e-4)
    np.testing.assert_allclose(result.recall_memberships, memberships_2, atol=1e-4)


@SIZES
@pytest.mark.parametrize("dimension", [1, 3, 200])
@pytest.mark.parametrize("coordinates", ["polar", "euclidean"])
def test_lsh_knn_equals_brute_force(num_generated, num_real, dimension, coordinates):
    generated, real = normal(num_generated, dimension, 3, shift=0.2), normal(num_real, dimension, 4)
    config = LSHConfig(num_tables=4, num_hashes=3, neighborhood=2, coordinates=coordinates)
    assert_equals_brute_force_knn(generated, real, config)


def test_lsh_knn_equals_brute_force_with_full_buckets_and_repeated_rows():
    generated, real = normal(130, 2, 5), np.repeat(normal(33, 2, 6), 4, axis=0)
    config = LSHConfig(num_tables=3, num_hashes=1, neighborhood=3, bucket_width=4.0)
    assert_equals_brute_force_knn(generated, real, config)


def assert_equals_brute_force_knn(generated, real, config):
    result = lsh_knn_precision_recall(generated, real, config)
    expected = brute_force.lsh_knn(generated, real, config, result.protocol["bucket_width"])
    assert (result.precision, result.recall) == pytest.approx(expected[:2], abs=1e-12)
    assert result.precision_memberships.tolist() == pytest.approx(expected[2])
    assert result.recall_memberships.tolist() == pytest.approx(expected[3])


# What the numbers mean


@METRICS
@DIMENSIONS
def test_sets_of_one_distribution_score_one(measure, dimension):
    results = [measure(normal(1000, dimension, s), normal(1000, dimension, s + 50)) for s in range(4)]
    assert np.mean([r.precision for r in results]) > 0.96
    assert np.mean([r.recall for r in results]) > 0.96


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


@METRICS
def test_mode_collapse_keeps_precision_and_loses_recall(measure):
    rng = np.random.default_rng(0)
    modes = 4 * rng.standard_normal((10, 16))
    real = modes[rng.integers(10, size=2000)] + rng.standard_normal((2000, 16))
    collapsed = modes[rng.integers(2, size=2000)] + rng.standard_normal((2000, 16))
    result = measure(collapsed, real)
    assert result.precision > 0.9
    assert result.recall == pytest.approx(0.2, abs=0.07)
    swapped = measure(real, collapsed)
    assert swapped.precision == pytest.approx(0.2, abs=0.07)
    assert swapped.recall > 0.8


@METRICS
@DIMENSIONS
@pytest.mark.parametrize("side", ["generated", "real"])
@pytest.mark.parametrize(("shift", "move"), [(10, 0.01), (0, 0.03)])
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
    generated, real = normal(1000, dimension, 1, shift=6.0), normal(1000, dimension, 2)
    {"generated": generated, "real": real}[side][0] = {"generated": -3, "real": 9}[side]
    result = measure(generated, real)
    assert result.precision <= 0.01
    assert result.recall <= 0.01


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
    assert result.precision_memberships[:20].max() == 0
    assert result.precision_memberships[20:].mean() > 0.5
    assert result.precision_memberships.shape == result.recall_memberships.shape == (500,)
    assert result.precision_raw == pytest.approx(result.precision_memberships.mean().item())


@METRICS
def test_standard_error_covers_the_spread_of_repeated_measurements(measure):
    def half_far(seed):
        far = np.random.default_rng(seed).random((600, 1)) < 0.5
        return np.where(far, normal(600, 16, seed, shift=4), normal(600, 16, seed))

    results = [measure(half_far(s), normal(600, 16, s + 99)) for s in range(12)]
    spread = np.std([r.precision for r in results], ddof=1)
    stated = np.mean([r.precision_stderr for r in results])
    assert 0.5 * spread < stated < 5 * spread  # wide on purpose: also for what the strict test may have missed
    assert sum(low <= 0.5 <= high for low, high in (r.interval("precision") for r in results)) >= 10


@METRICS
def test_intervals_of_two_halves_of_one_set_hold_one(measure):
    held = 0
    for seed in range(20):
        halves = normal(1200, 16, seed)
        result = measure(halves[:600], halves[600:])
        held += sum(result.interval(name)[1] == 1 for name in ("precision", "recall"))
    assert held >= 36


def test_a_collapsed_generator_inside_the_support_has_precision():
    """One spot passes or fails as a whole: a median test alone would toss a coin."""
    real = normal(1000, 8, 1)
    from_the_middle = np.linalg.norm(real, axis=1).argsort()[100:600:100]
    spots = [real[i] + 1e-3 * normal(500, 8, i) for i in from_the_middle]
    for spot in spots:
        result = lsh_knn_precision_recall(spot, real)
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
def test_number_of_threads_changes_nothing(measure):
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


def test_other_processes_give_the_same_numbers():
    program = (
        "import numpy as np; from torch_fidelity_lsh import lsh_precision_recall;"
        "rng = np.random.default_rng(0); a, b = rng.standard_normal((2, 300, 20));"
        "print(repr(lsh_precision_recall(a, b).to_dict()))"
    )
    outputs = {subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout for _ in "12"}
    assert len(outputs) == 1


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
@settings(max_examples=25, deadline=None)
@given(pair=sets, seed=st.integers(0, 1000))
def test_translation_and_permutation_change_nothing(measure, pair, seed):
    rng = np.random.default_rng(seed)
    # Multiples of a power of two, so that adding the offset rounds nothing.
    generated, real = (np.round(side * 2**20) / 2**20 for side in pair)
    offset = rng.integers(-100, 100, generated.shape[1])
    moved = [rng.permutation(side) + offset for side in (generated, real)]
    before, after = measure(generated, real, CONFIG), measure(*moved, CONFIG)
    # The mean of the moved samples is rounded differently; a sample may sit on the edge of a cell.
    assert after.precision == pytest.approx(before.precision, abs=0.05)
    assert after.recall == pytest.approx(before.recall, abs=0.05)


@METRICS
@settings(max_examples=25, deadline=None)
@given(pair=sets)
def test_all_numbers_are_in_range(measure, pair):
    result = measure(*pair, CONFIG)
    assert all(np.isfinite(value) for value in numbers(result).values())
    for value in (result.precision, result.recall, result.f_score, result.precision_raw, result.recall_raw):
        assert 0 <= value <= 1
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
def test_varied_samples_miss_a_constant_support(measure):
    result = measure(normal(50, 5, 1), np.zeros((50, 5)))
    assert (result.precision, result.recall) == (0.0, 0.0)


@METRICS
def test_repeated_rows_count_as_samples(measure):
    generated, real = normal(100, 8, 1), normal(100, 8, 2)
    result = measure(np.repeat(generated, 5, axis=0), np.repeat(real, 5, axis=0))
    assert np.isfinite(list(numbers(result).values())).all()
    same = measure(np.repeat(real, 5, axis=0), np.repeat(real, 5, axis=0))
    assert (same.precision, same.recall) == (1.0, 1.0)


@METRICS
def test_few_samples_give_a_number(measure):
    n = 2 if measure is lsh_precision_recall else 4
    result = measure(normal(n, 3, 1), normal(n, 3, 2))
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
        (
            np.zeros(17),
            np.zeros((17, 2)),
            r"features_generated must be N x D with N >= 1 and D >= 1; got shape \(17,\)",
        ),
        (np.zeros((17, 0)), np.zeros((17, 0)), r"got shape \(17, 0\)"),
        (np.zeros((1, 2)), np.zeros((17, 2)), r"features_generated must hold at least \d+ samples .* got 1"),
        (
            np.zeros((17, 2)),
            np.zeros((0, 2)),
            r"features_real must be N x D with N >= 1 and D >= 1; got shape \(0, 2\)",
        ),
        ([[0.0]] * 17, np.zeros((17, 1)), "features_generated must be a tensor or a numpy array; got list"),
    ],
)
def test_unusable_features_are_refused(measure, generated, real, message):
    with pytest.raises(ValueError, match=message):
        measure(generated, real)


def test_too_narrow_a_bucket_is_refused():
    with pytest.raises(ValueError, match="bucket_width=1e-09 is too small"):
        lsh_knn_precision_recall(normal(100, 8, 1), normal(100, 8, 2), LSHConfig(bucket_width=1e-9))


def test_sparse_modes_belong_to_the_support_as_much_as_dense_ones():
    rng = np.random.default_rng(1)
    modes, spreads = 4 * rng.standard_normal((10, 16)), np.exp(rng.uniform(-0.7, 0.7, 10))
    chosen = rng.integers(10, size=2000)
    real = modes[chosen] + spreads[chosen, None] * rng.standard_normal((2000, 16))
    sparse = int(spreads.argmax())
    generated = modes[sparse] + spreads[sparse] * rng.standard_normal((2000, 16))
    assert lsh_precision_recall(generated, real).precision > 0.8
    assert lsh_knn_precision_recall(generated, real).precision > 0.7


def test_neighborhood_needs_as_many_samples():
    with pytest.raises(ValueError, match="at least 12 samples for these settings; got 11"):
        lsh_knn_precision_recall(normal(11, 2, 1), normal(50, 2, 2), LSHConfig(neighborhood=10))


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
    assert result.protocol["matched_size"] == 80
    assert (result.protocol["num_tables"], result.protocol["num_hashes"], result.protocol["seed"]) == (24, 12, 7)
    assert result.protocol["bucket_widths"] == sorted(result.protocol["bucket_widths"])
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
    options = {"lsh_num_tables": 24, "lsh_occupancy": 0.5, "rng_seed": 5}
    expected = lsh_precision_recall(*sides, LSHConfig(num_tables=24, occupancy=0.5, seed=5)).to_dict()
    assert lsh_features_to_metric(*sides, **options) == expected


@pytest.mark.parametrize("name", ["num_tables", "lsh_num_table"])
def test_mistyped_option_is_refused_with_the_nearest_name(name):
    with pytest.raises(ValueError, match=f'Unknown keyword "{name}"; did you mean "lsh_num_tables"'):
        lsh_features_to_metric(normal(80, 4, 1), normal(80, 4, 2), **{name: 24})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"neighborhood": 1}, "neighborhood must be an integer of at least 2, or None; got 1"),
        ({"num_hashes": 2.0}, "num_hashes must be an integer of at least 1, or None; got 2.0"),
        ({"num_tables": True}, "num_tables must be an integer"),
        ({"bucket_width": -1}, "bucket_width must be a positive number, or None; got -1"),
        ({"bucket_width": float("nan")}, "bucket_width must be a positive number"),
        ({"occupancy": 1}, "occupancy must be a number between 0 and 1, both excluded, or None; got 1"),
        (
            {"coordinates": "polr"},
            "coordinates must be one of polar, radial, euclidean; got 'polr'; did you mean \"polar\"",
        ),
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
