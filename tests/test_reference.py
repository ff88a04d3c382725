"""Reference files: nothing changes but the time and the space, and a file that does not fit is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch_fidelity import GenerativeModelModuleWrapper

from torch_fidelity_lsh import (
    LSHConfig,
    ReducedFeatures,
    calculate_metrics,
    create_reference,
    load_reference,
    lsh_knn_precision_recall,
    lsh_precision_recall,
    reduce_features,
    save_reference,
)
from torch_fidelity_lsh.cli import main

ON_IMAGES = {"feature_extractor": "counting", "cuda": False, "verbose": False, "cache": False}
BOTH = {"lsh": True, "lsh_knn": True}


@pytest.fixture
def reference(tmp_path):
    """A reference of 300 samples of 200 dimensions, and its file."""
    kept = reduce_features(torch.randn(300, 200))
    path = tmp_path / "reference.safetensors"
    save_reference(kept, path)
    return kept, path


def test_a_row_depends_on_nothing_but_its_own_features():
    features = torch.randn(50, 300) * torch.logspace(-20, 20, 50)[:, None]
    whole = ReducedFeatures.of(features).values
    assert torch.equal(whole[7:9], ReducedFeatures.of(features[7:9]).values)
    assert torch.equal(whole, ReducedFeatures.of(features, batch_size=7).values)


def test_reduction_keeps_distances_and_is_what_it_says():
    features = torch.randn(20, 20_000)
    reduced = ReducedFeatures.of(features, num_components=512).values
    assert torch.pdist(reduced) / torch.pdist(features) == pytest.approx(
        float((torch.pdist(reduced) / torch.pdist(features)).mean()), rel=0.2
    )
    signs = torch.from_numpy(2 * np.random.default_rng([2020, 0]).integers(2, size=(20_000, 512)) - 1).double()
    expected = features.double() @ signs / 2**13
    assert (reduced - expected).abs().max() < 0.01 * expected.std()


def test_offsets_do_not_hide_the_samples_silently():
    generated, real = torch.randn(2, 300, 200, dtype=torch.float64)
    expected = lsh_precision_recall(generated, real)
    moderate = lsh_precision_recall(generated + 300, real + 300)
    assert moderate.precision == pytest.approx(expected.precision, abs=0.1)
    for offset in (3e3, 2e4, 1e5):  # At the second, rounding leaves no two rows different.
        with pytest.raises(ValueError, match="subtract their mean from both sides first"):
            lsh_precision_recall(generated + offset, real + offset)


def test_constant_features_are_refused_where_they_may_have_varied_before_rounding():
    ones = torch.ones(9, 200)
    for features in (ones, reduce_features(ones)):
        with pytest.raises(ValueError, match="are equal, or vary"):
            lsh_precision_recall(features, features)
    assert lsh_precision_recall(ones - 1, ones - 1).precision == 1
    assert lsh_precision_recall(ones[:, :100], ones[:, :100]).precision == 1


def test_sets_of_which_most_are_one_row_are_measured():
    generated, real = torch.randn(2, 300, 200)
    real[100:] = real[0]
    assert lsh_precision_recall(generated, real).precision > 0.5


def test_few_dimensions_are_kept_as_they_are():
    features = torch.randn(10, 128, dtype=torch.float64)
    assert ReducedFeatures.of(features).values is features


@pytest.mark.parametrize("measure", [lsh_precision_recall, lsh_knn_precision_recall])
def test_reduced_features_give_the_same_result(measure):
    generated, real = torch.randn(200, 300) + 0.1, torch.randn(150, 300)
    expected = measure(generated, real).to_dict()
    assert measure(generated, reduce_features(real)).to_dict() == expected
    assert measure(reduce_features(generated), reduce_features(real)).to_dict() == expected


def test_reference_made_of_images_gives_the_numbers_of_the_images(counting_extractor, image_folders, tmp_path):
    generated, real = image_folders
    expected = calculate_metrics(input1=generated, input2=real, **ON_IMAGES, **BOTH, kid=True, kid_subset_size=2)
    kept = create_reference(input=real, **ON_IMAGES)
    save_reference(kept, tmp_path / "real.safetensors")
    for given in (kept, str(tmp_path / "real.safetensors"), tmp_path / "real.safetensors"):
        result = calculate_metrics(input1=generated, input2=given, **ON_IMAGES, **BOTH)
        assert result == {key: expected[key] for key in result}


def test_reference_on_the_command_line(counting_extractor, image_folders, tmp_path, capsys):
    generated, real = map(str, image_folders)
    output = tmp_path / "real.safetensors"
    extraction = ["--feature-extractor", "counting", "--cpu", "--silent", "--no-cache"]
    assert main(["index", "--input", real, "--output", str(output), "--json", *extraction]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["feature_layer"] == "wide"
    assert made["samples"] > 1
    for second in (real, str(output)):
        assert main(["--input1", generated, "--input2", second, "--lsh", *extraction]) == 0
    first, second = capsys.readouterr().out.split("lsh_precision:")[1:]
    assert first == second


def test_samples_of_a_generator_are_reduced_each_drawn_once(counting_extractor):
    drawn = []

    class Noise(torch.nn.Module):
        def forward(self, z):
            drawn.append(len(z))
            return (z.abs() * 60).clamp(0, 255).byte()[:, :3, None, None].expand(-1, 3, 8, 8)

    model = GenerativeModelModuleWrapper(Noise(), 4, "normal", 0)
    call = {**ON_IMAGES, "input": model, "input2_model_num_samples": 64, "batch_size": 16}
    assert len(create_reference(**call)) == 64
    assert drawn == [16] * 4
    with pytest.raises(ValueError, match=r"^input: the generator failed on noise"):
        create_reference(**{**call, "input": GenerativeModelModuleWrapper(torch.nn.Linear(5, 4), 4, "normal", 0)})


def test_index_names_its_own_options(capsys):
    with pytest.raises(SystemExit):
        main(["index", "--input", "real", "--outptu", "x.safetensors", "--output", "y.safetensors"])
    assert 'did you mean "--output"?' in capsys.readouterr().err


def test_fifty_thousand_references_fit_in_32_megabytes(tmp_path):
    sizes = []
    for count in (100, 1100):
        path = tmp_path / f"{count}.safetensors"
        save_reference(reduce_features(torch.randn(count, 200)), path)
        sizes.append(path.stat().st_size)
    per_sample = (sizes[1] - sizes[0]) / 1000
    assert sizes[0] + 50_000 * per_sample <= 32e6


def test_file_survives_a_round_trip(reference):
    kept, path = reference
    loaded = load_reference(path)
    assert torch.equal(loaded.values, kept.values)
    assert replace(loaded, values=kept.values) == kept


def test_interrupted_writing_leaves_the_old_file(reference, monkeypatch):
    kept, path = reference
    before = path.read_bytes()

    def break_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("torch_fidelity_lsh.metric.files.os.fsync", break_off)
    with pytest.raises(KeyboardInterrupt):
        save_reference(kept, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("place", [-1, -1000, 20])
def test_a_damaged_file_is_refused(reference, place):
    _, path = reference
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged|no torch-fidelity-lsh reference"):
        load_reference(path)


def test_a_truncated_file_is_refused(reference):
    _, path = reference
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        load_reference(path)


def test_a_file_of_another_version_or_kind_is_refused(reference, tmp_path):
    kept, path = reference
    metadata = {"format": "torch-fidelity-lsh reference", "format_version": "99"}
    save_file({"reduced_features": kept.values}, path, metadata)
    with pytest.raises(ValueError, match=r"format version 99, and this release reads version 2"):
        load_reference(path)
    save_file({"features": kept.values}, tmp_path / "features.safetensors")
    with pytest.raises(
        ValueError, match="is no torch-fidelity-lsh reference file; `fidelity-lsh index` makes a reference file"
    ):
        load_reference(tmp_path / "features.safetensors")


def test_a_file_needs_its_ending(reference, tmp_path):
    with pytest.raises(ValueError, match=r"path: the file must end in .safetensors"):
        save_reference(reference[0], tmp_path / "reference.pt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rng_seed": 1}, "input2|features_real were reduced with seed=2020, and seed=1 is asked for"),
        ({"lsh_num_components": 64}, "reduced with num_components=128, and num_components=64 is asked for"),
        ({"fid": True}, "fid needs features, and input2 is a reference, which keeps less of them"),
        ({"input1": torch.randn(300, 100)}, "input1 has 100 features a sample .* input2 has 200"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(reference, settings, message):
    call = {"input1": torch.randn(300, 200), "input2": str(reference[1]), "lsh": True, "verbose": False, **settings}
    with pytest.raises(ValueError, match=message):
        calculate_metrics(**call)


def test_a_reference_of_another_layer_is_refused(counting_extractor, image_folders):
    generated, real = image_folders
    kept = create_reference(input=real, feature_layer_lsh="small", **ON_IMAGES)
    with pytest.raises(ValueError, match=r'input2 was made from layer "small" of counting, and lsh is asked for with'):
        calculate_metrics(input1=generated, input2=kept, lsh=True, **ON_IMAGES)


def test_references_of_two_extractors_are_not_compared():
    one, other = (replace(reduce_features(torch.randn(9, 5)), feature_extractor=name) for name in ("a", "b"))
    with pytest.raises(ValueError, match="must be of one kind; got layer"):
        lsh_precision_recall(one, other)


def test_a_reference_needs_an_input():
    with pytest.raises(ValueError, match="input is missing"):
        create_reference(feature_extractor="vgg16")


def test_too_few_reduced_samples_are_refused():
    one = reduce_features(torch.randn(1, 5))
    with pytest.raises(ValueError, match="features_generated must hold at least 8 samples"):
        lsh_precision_recall(one, one, LSHConfig())
