"""Does the generator copy its training samples?"""

import dataclasses
import json

import numpy as np
import pytest
import torch

from torch_fidelity_lsh import calculate_metrics, memorization, reduce_features
from torch_fidelity_lsh.cli import main


def draws(*sizes, dimension=16, seed=0):
    """Samples of one distribution, of twelve modes of different width."""
    random = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(12, dimension, generator=torch.Generator().manual_seed(99))
    sets = []
    for size in sizes:
        mode = torch.randint(12, (size,), generator=random)
        widths = 0.3 + mode[:, None] / 6
        sets.append(centres[mode] + widths * torch.randn(size, dimension, generator=random))
    return sets


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("planted", [0.05, 0.3, 1.0])
def test_planted_copies_are_counted(planted, noise):
    training, held_out, generated = draws(1500, 1000, 1000)
    number = round(planted * 1000)
    copies = torch.randperm(1500)[:number]
    generated[:number] = training[copies] + noise * torch.randn(number, 16)
    found = memorization(generated, training, held_out)
    low, high = found.interval
    assert low <= planted <= high + 1e-9
    assert found.share == pytest.approx(planted, abs=0.02)
    assert low > 0
    assert torch.equal(found.nearest[:number], copies)
    assert found.pvalues[:number].max() < 0.02


def test_the_interval_holds_the_share_as_often_as_it_says():
    inside = {0.0: 0, 0.1: 0}
    for seed in range(60):
        for planted in inside:
            training, held_out, generated = draws(600, 400, 400, dimension=6, seed=seed)
            number = int(planted * 400)
            generated[:number] = training[:number]
            low, high = memorization(generated, training, held_out).interval
            inside[planted] += low <= planted <= high
    assert min(inside.values()) >= 53  # of 60; 57 are expected


def test_bad_collapsed_and_held_out_like_samples_are_no_copies():
    training, held_out, generated = draws(1500, 1000, 1000)
    far = generated + 20 * torch.randn(1000, 16)
    assert memorization(far, training, held_out).share == 0
    one_mode = draws(40_000, seed=3)[0]
    centre = training[5]
    collapsed = one_mode[(one_mode - centre).norm(dim=1).argsort()[:1000]]
    assert memorization(collapsed, training, held_out).share < 0.05


def test_copies_in_the_training_set_and_scale_change_nothing():
    training, held_out, generated = draws(800, 500, 500)
    generated[:100] = training[:100]
    plain = memorization(generated, training, held_out)
    again = memorization(generated, torch.cat([training, training[:50]]), held_out)
    assert (again.share, again.stderr) == (plain.share, plain.stderr)
    scaled = memorization(1024 * generated, 1024 * training, 1024 * held_out)
    assert scaled.share == plain.share


def test_reduced_features_serve_as_well():
    training, held_out, generated = draws(400, 300, 300, dimension=200)
    generated[:60] = training[:60]
    whole = memorization(generated, training, held_out)
    assert memorization(*map(reduce_features, (generated, training, held_out))).to_dict() == whole.to_dict()
    assert whole.share == pytest.approx(0.2, abs=0.03)


def test_held_out_samples_that_were_trained_on_are_noticed():
    training, held_out, generated = draws(400, 300, 300)
    held_out[:30] = training[:30]
    with pytest.warns(UserWarning, match="10% of the held-out samples are training samples"):
        memorization(generated, training, held_out)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((400, 99, 300), "features_held_out must hold at least 100 samples; got 99"),
        ((19, 300, 300), "features_training must hold at least 20 distinct samples; got 19"),
    ],
)
def test_too_few_samples_are_refused(sizes, message):
    training, held_out, generated = draws(*sizes)
    with pytest.raises(ValueError, match=message):
        memorization(generated, training, held_out)


def test_samples_of_other_dimensions_are_refused():
    training, held_out, generated = draws(400, 300, 300)
    with pytest.raises(
        ValueError, match=r"features_generated and features_held_out must have the same D; got .*16.*15"
    ):
        memorization(generated, training, held_out[:, :15])
    with pytest.raises(ValueError, match="features_generated holds NaN"):
        memorization(generated * float("nan"), training, held_out)


def test_samples_of_other_extractors_are_refused():
    training, held_out, generated = draws(400, 300, 300)
    of_vgg, of_clip = (
        dataclasses.replace(reduce_features(side), feature_extractor=name, feature_layer="x")
        for side, name in ((training, "vgg16"), (held_out, "clip"))
    )
    with pytest.raises(ValueError, match='must be of one kind; got layer "x" of vgg16 and layer "x" of clip'):
        memorization(generated, of_vgg, of_clip)


def test_the_command_takes_the_held_out_samples_as_a_third_input(tmp_path, capsys):
    paths = [str(tmp_path / f"{i}.npy") for i in range(3)]
    training, held_out, generated = draws(400, 300, 300)
    generated[:60] = training[:60]
    for path, side in zip(paths, (generated, training, held_out), strict=True):
        np.save(path, side)
    inputs = [word for i, path in enumerate(paths, 1) for word in (f"--input{i}", path)]
    assert main(["memorization", *inputs, "--json", "--silent"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == memorization(generated, training, held_out).to_dict()


def test_the_main_call_tells_the_share_of_copies_beside_the_other_numbers(tmp_path, capsys):
    training, held_out, generated = draws(400, 300, 300)
    generated[:90] = training[:90]
    sides = {"input1": generated, "input2": training, "input3": held_out}
    for name, side in sides.items():
        np.save(tmp_path / f"{name}.npy", side.numpy())
    asked = {"lsh": True, "lsh_knn": True, "cuda": False, "verbose": False}
    found = calculate_metrics(**sides, **asked)
    share = memorization(generated, training, held_out)
    assert (found["memorization"], found["memorization_stderr"]) == (share.share, share.stderr)
    assert (found["memorization_ci_low"], found["memorization_ci_high"]) == share.interval
    without = calculate_metrics(input1=generated, input2=training, **asked)
    assert without == {key: value for key, value in found.items() if "memorization" not in key}
    page = tmp_path / "report.html"
    call = [word for name in sides for word in (f"--{name}", str(tmp_path / f"{name}.npy"))]
    assert main([*call, "--lsh", "--lsh-knn", "--silent", "--json", "--report", str(page)]) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(found)
    assert "Memorisation" in page.read_text()


def test_held_out_images_are_looked_at_with_the_extractor_of_the_call(counting_extractor):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (360, 3, 8, 8), dtype=torch.uint8, generator=random)
    generated, training, held_out = images[:120].clone(), images[120:240], images[240:]
    generated[:60] = training[:60]
    sides = {f"input{side}": Rows(each) for side, each in enumerate((generated, training, held_out), start=1)}
    call = {"feature_extractor": "counting", "cuda": False, "verbose": False, "save_cpu_ram": True, "lsh": True}
    found = calculate_metrics(**sides, **call, fid=True)
    assert found["memorization_ci_low"] < 0.5 < found["memorization_ci_high"] + 0.02
    assert counting_extractor.images == 360


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"fid": True}, "input3 is for memorization, which looks at the features of lsh or lsh_knn: ask for one"),
        (
            {"lsh": True, "input3": torch.zeros(99, 16)},
            "input3 must hold at least 100 samples for memorization; got 99",
        ),
        ({"lsh": True, "input3": torch.zeros(200, 8)}, "held out: input3.*features_held_out must have the same D.* 8"),
        ({"lsh": True, "input3": "nowhere.npy"}, 'input3, file "nowhere.npy": there is no such file'),
        ({"lsh": True, "input3": "input2/no.npy"}, 'input3, file "input2/no.npy": there is no such file'),
        ({"lsh": True, "input3": torch.zeros(200)}, "input3.*N x D"),
    ],
)
def test_held_out_samples_that_cannot_serve_are_refused_by_name(call, message):
    training, held_out, generated = draws(200, 150, 150)
    sides = {"input1": generated, "input2": training, "input3": held_out, "cuda": False, "verbose": False}
    with pytest.raises(ValueError, match=message):
        calculate_metrics(**{**sides, **call})
