"""Which class does a conditional generator do badly?"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from torch_fidelity import GenerativeModelModuleWrapper

from torch_fidelity_lsh import calculate_by_class, lsh_knn_precision_recall
from torch_fidelity_lsh.cli import main
from torch_fidelity_lsh.fidelity.classes import deep_if_sorted
from torch_fidelity_lsh.report.metrics import write_report

CALL = {"feature_extractor": "counting", "cuda": False, "verbose": False, "cache": False, "save_cpu_ram": True}


@pytest.fixture
def sides():
    """Six classes of 200 a side, shuffled: the generated ones of class 4 collapse, those of 5 are elsewhere."""
    rng = np.random.default_rng(0)
    labels = [rng.permutation(np.repeat(np.arange(6), 200)) for _ in range(2)]
    generated, real = (rng.normal(size=(1200, 16)) + 5 * each[:, None] for each in labels)
    collapsed, elsewhere = labels[0] == 4, labels[0] == 5
    generated[collapsed] = generated[collapsed][0] + 0.02 * rng.normal(size=(200, 16))
    generated[elsewhere] += 30
    return generated, real, *labels


def squares(n, shade, seed):
    noise = np.random.default_rng(seed).integers(40, size=(n, 8, 8, 3))
    return (noise + shade).astype(np.uint8)


def sorted_into_folders(root, shades, seed):
    for name, shade in shades.items():
        (root / name).mkdir(parents=True)
        for i, image in enumerate(squares(30, shade, seed + shade)):
            Image.fromarray(image).save(root / name / f"{i}.png")
    return str(root)


def test_the_worst_classes_come_first_and_say_what_is_wrong(sides):
    generated, real, *labels = sides
    found = calculate_by_class(
        input1=generated, input2=real, labels1=labels[0], labels2=torch.from_numpy(labels[1]), verbose=False
    )
    assert [row.name for row in found.rows] == ["0", "1", "2", "3", "4", "5"]
    worst = found.worst()
    assert len(worst) == 5
    assert {row.name for row in worst[:2]} == {"4", "5"}
    collapsed, elsewhere = (found.rows[number].result for number in (4, 5))
    assert elsewhere.precision < 0.1
    assert collapsed.recall < 0.2
    assert collapsed.interval("recall")[1] < 0.4
    assert all(row.result.interval("precision")[1] > 0.9 for row in worst[2:])


def test_paths_may_be_path_objects(sides, tmp_path):
    generated, real, *labels = (each[:200] for each in sides)
    np.save(tmp_path / "labels.npy", labels[0])
    found = calculate_by_class(
        input1=generated, input2=real, labels1=tmp_path / "labels.npy", labels2=labels[1], verbose=False
    )
    assert [row.name for row in found.rows] == ["0", "1", "2", "3", "4", "5"]
    (tmp_path / "folder" / "a class").mkdir(parents=True)
    assert deep_if_sorted({"input1": tmp_path / "folder", "input2": real}, None, labels[1])["samples_find_deep"]


def test_a_class_has_the_numbers_of_its_own_samples(sides):
    generated, real, *labels = sides
    found = calculate_by_class(input1=generated, input2=real, labels1=labels[0], labels2=labels[1], verbose=False)
    alone = lsh_knn_precision_recall(
        *(each[of == 2].astype(np.float32) for each, of in zip(sides[:2], labels, strict=True))
    )
    assert found.rows[2].result.to_dict() == alone.to_dict()


def test_sub_folders_are_classes(counting_extractor, tmp_path, capsys):
    inputs = {
        "input1": sorted_into_folders(tmp_path / "generated", {"cat": 20, "dog": 200, "fox": 120}, 0),
        "input2": sorted_into_folders(tmp_path / "real", {"cat": 20, "dog": 90, "owl": 120}, 1),
    }
    found = calculate_by_class(**CALL, **inputs)
    assert [(row.name, row.num_generated, row.num_real) for row in found.rows] == [
        ("cat", 30, 30), ("dog", 30, 30), ("fox", 30, 0), ("owl", 0, 30)
    ]  # fmt: skip
    assert [row.name for row in found.worst()] == ["dog", "cat"]
    assert found.worst()[0].result.precision == 0
    assert "20 samples of each side are needed" in found.rows[2].note
    options = ["--feature-extractor", "counting", "--cpu", "--silent", "--save-cpu-ram", "--json"]
    assert main(["classes", "--input1", inputs["input1"], "--input2", inputs["input2"], *options]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.to_dict()))
    write_report(tmp_path / "report.html", **CALL, **inputs, lsh_knn=True, by_class=True)
    text = (tmp_path / "report.html").read_text()
    assert text.index('<th scope="row">dog</th>') < text.index('<th scope="row">cat</th>')
    assert "owl: 0 generated, 30 real: not measured" in text


def test_labels_beside_the_images_of_adms_samples_are_read(counting_extractor, tmp_path):
    paths = [str(tmp_path / f"{i}.npz") for i in range(2)]
    for seed, path in enumerate(paths):
        images = np.concatenate([squares(40, 10, seed), squares(40, 150, seed)])
        np.savez(path, images, np.repeat([3, 11], 40))
    found = calculate_by_class(**CALL, input1=paths[0], input2=paths[1], metric="lsh")
    assert [(row.name, row.num_real) for row in found.rows] == [("3", 40), ("11", 40)]


def test_the_classes_that_a_conditional_generator_was_asked_for_are_its_labels(counting_extractor):
    asked = []

    class Conditional(torch.nn.Module):
        def forward(self, z, label):
            asked.extend(label.tolist())
            return (10 * z.view(-1, 3, 8, 8) + 60 + 60 * label[:, None, None, None]).to(torch.uint8)

    class Real(Dataset):
        targets = torch.arange(150) % 3

        def __len__(self):
            return 150

        def __getitem__(self, index):
            noise = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index))
            return (10 * noise + 60 + 60 * self.targets[index]).to(torch.uint8)

    model = GenerativeModelModuleWrapper(Conditional().eval(), 192, "normal", 3)
    found = calculate_by_class(**CALL, input1=model, input2=Real(), input1_model_num_samples=150, batch_size=32)
    assert [row.num_generated for row in found.rows] == [asked[:150].count(label) for label in range(3)]
    assert [row.num_real for row in found.rows] == [50, 50, 50]
    assert all(row.result.precision > 0.5 for row in found.rows)


BAD = {
    "length": ({"labels1": [0] * 7}, "labels1 must be one for each of the 60 samples of input1; got 7"),
    "none": ({}, "input1 brings no labels along: pass labels1, one for each sample"),
    "type": (
        {"labels1": np.zeros(60)},
        r"labels1 must be integers or names, one for each sample; got float64, \(60,\)",
    ),
    "shape": ({"labels1": np.zeros((60, 3), int)}, r"labels1 must be integers or names.*got int64, \(60, 3\)"),
    "file": ({"labels1": "labels.csv"}, 'labels1: "labels.csv" is no .npy file of labels'),
    "apart": ({"labels1": ["a"] * 60}, "input1 and input2 have no class in common: their labels are a, ... and 0, ..."),
    "metric": ({"metric": "lsh_kn"}, "metric must be one of lsh, lsh_knn; got 'lsh_kn'; did you mean \"lsh_knn\""),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_labels_are_named(case, features):
    given, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        calculate_by_class(**{"labels2": [0] * 70, **given}, input1=features[0], input2=features[1], verbose=False)


def test_images_beside_the_sub_folders_have_no_class(counting_extractor, tmp_path):
    root = sorted_into_folders(tmp_path / "x", {"cat": 20}, 0)
    Image.fromarray(squares(1, 0, 0)[0]).save(tmp_path / "x" / "stray.png")
    with pytest.raises(ValueError, match=r'input1: ".*stray\.png" lies in no sub-folder'):
        calculate_by_class(**CALL, input1=root, input2=root)
