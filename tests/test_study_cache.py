"""What a study keeps: never the numbers of another row, never damaged ones, nothing lost."""

# ruff: noqa: F811

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_study import SETTINGS, Spy, Tiny, draw, generator, real, study, tiny  # noqa: F401
from torch import nn
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from compressors import ChannelPruner, CompressionError, Quantizer
from compressors.study.cache import KeptRows, read_features, write_features
from compressors.study.table import Row

STRENGTH = 1.0


@dataclass(frozen=True)
class Scaling:
    """A foreign compressor: scales all weights by what it was given."""

    by: Any
    name: str = "scaling"

    def compress(self, model, example_inputs, calibration=None):
        result = Quantizer(8).compress(model, example_inputs)
        factor = self.by() if callable(self.by) else self.by
        return replace(result, model=Scaled(result.model, factor))


class Scaled(nn.Module):
    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, z, label):
        return self.model(z, label) * self.factor


class Factor:
    """An object with a state, which its class does not show."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self):
        return self.factor


def factor_of(number):
    return lambda: number


def half():
    return 0.5


def strength():
    return STRENGTH


def scores(row):
    return row.scores["real"]


PAIRS = [
    (factor_of(1.0), factor_of(0.2)),
    (half, factor_of(0.5 * 0.2)),
    (Factor(1.0), Factor(0.2)),
    (Factor(1.0).__call__, Factor(0.2).__call__),
    (0.5, 0.1),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_compressors_that_differ_in_a_function_or_object_get_a_row_each(study, first, second):
    both = study({"a": Scaling(first), "b": Scaling(second)}).rows
    assert scores(both[1]) != scores(both[2])
    # In another run, under each other's labels.
    swapped = study({"a": Scaling(second), "b": Scaling(first)}).rows
    assert (scores(swapped[1]), scores(swapped[2])) == (scores(both[2]), scores(both[1]))


def first_channels(group):
    return torch.arange(group[0].dep.target.module.weight.shape[0]).float()


def last_channels(group):
    return -first_channels(group)


def test_two_pruners_with_different_importances_get_a_row_each(study):
    pruners = {"first": first_channels, "last": last_channels}
    table = study({name: ChannelPruner(0.5, importance=importance) for name, importance in pruners.items()})
    alone = study({"renamed": ChannelPruner(0.5, importance=first_channels)})
    assert table.rows[1].sqnr_db != table.rows[2].sqnr_db
    assert replace(alone.rows[1], compressor="first") == table.rows[1]


def test_a_global_that_a_function_names_is_part_of_the_row(study, monkeypatch):
    first = study([Scaling(strength)]).rows[1]
    monkeypatch.setattr(sys.modules[__name__], "STRENGTH", 0.2)
    assert scores(study([Scaling(strength)]).rows[1]) != scores(first)


def test_the_same_settings_are_kept_whatever_their_label(study, tiny):
    study({"a": Scaling(factor_of(0.2)), "b": Scaling(Factor(0.3))})
    images = tiny.images
    study({"c": Scaling(factor_of(0.2)), "d": Scaling(Factor(0.3))})
    assert tiny.images == images


class Locked(Factor):
    """Holds what nobody can look into."""

    def __init__(self, factor):
        super().__init__(factor)
        self.lock = threading.Lock()


def test_what_cannot_be_identified_is_measured_in_every_run_and_says_so(study, tiny):
    ways = {"a": Scaling(Locked(1.0)), "b": Scaling(Locked(0.2))}
    table = study(ways, keep_features=True)
    images = tiny.images
    again = study(ways, keep_features=True)
    assert tiny.images == images + 2 * 40
    assert scores(table.rows[1]) == scores(again.rows[1]) != scores(again.rows[2])
    assert "a: measured in every run: it holds what cannot be identified (lock)" in str(again)
    assert len({row.samples for row in again.rows}) == 3


class Styled(Spy):
    """Spy, with all that a generator may keep outside of its state dict."""

    def __init__(self):
        super().__init__()
        self.gain = 1.0
        self.options = {"offset": 0.0}
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, z, label):
        image = super().forward(z * self.gain, label)
        return (image * self.scale + self.options["offset"]).clamp(-1, 1)


def test_a_change_outside_of_the_state_dict_measures_again(study, tiny, monkeypatch):
    model = Styled()
    ways = [Quantizer(8)]
    first = study(ways, model=model)

    def changed():
        images = tiny.images
        table = study(ways, model=model)
        assert tiny.images >= images + 2 * 40
        assert scores(table.rows[0]) != scores(first.rows[0])

    model.gain = 3.0
    changed()
    model.gain = 1.0
    model.options["offset"] = 0.5
    changed()
    model.options["offset"] = 0.0
    model.scale.fill_(0.2)
    changed()
    model.scale.fill_(1)
    handle = model.conv.register_forward_hook(lambda module, inputs, output: output * 0.1)
    changed()
    handle.remove()
    with monkeypatch.context() as patch:
        patch.setattr(Styled, "forward", lambda self, z, label: Spy.forward(self, z, label) * 0.1)
        changed()
    images = tiny.images
    assert study(ways, model=model) == first
    assert tiny.images == images


class Spoiling(Scaling):
    """Changes the model and the inputs that it is given, which no compressor should."""

    def compress(self, model, example_inputs, calibration=None):
        result = super().compress(model, example_inputs)
        with torch.no_grad():
            for tensor in (*model.parameters(), *example_inputs, *(item for batch in calibration for item in batch)):
                tensor.zero_()
        return result


def test_a_compressor_that_spoils_what_it_is_given_spoils_no_other_row(study):
    clean = study([Quantizer(8, act_bits=8)])
    spoilt = study([Spoiling(0.5), Quantizer(8, act_bits=8)], references=("real", "teacher"))
    assert scores(spoilt.rows[2]) == scores(clean.rows[1])
    assert spoilt.rows[2].sqnr_db == clean.rows[1].sqnr_db


class OfDict(Spy):
    def forward(self, inputs):
        return super().forward(inputs["z"], inputs["labels"][0]) * inputs["gain"]


def test_other_values_in_a_dict_from_draw_measure_again(study):
    def drawing(gain, first=0):
        def in_dict(n, random):
            z, _ = draw(n, random)
            labels = nn.functional.one_hot((torch.arange(n) + first) % 2).float()
            return ({"z": z, "labels": [labels], "gain": gain},)

        return in_dict

    found = [scores(study([], model=OfDict(), draw=drawing(*what)).rows[0]) for what in ((1.0,), (0.2,), (1.0, 1))]
    assert found[0] != found[1]
    assert found[0] != found[2]


def test_an_extractor_of_the_same_name_that_computes_otherwise_measures_again(study, monkeypatch):
    class Squared(Tiny):
        def forward(self, x):
            return (super().forward(x)[0].square(),)

    first = study([], metrics=("fid",), keep_features=True).rows[0]
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "tiny", Squared)
    assert scores(study([], metrics=("fid",), keep_features=True).rows[0]) != scores(first)


def test_models_are_told_apart_by_what_they_compute(study, generator):
    gains = [Styled() for _ in range(2)]
    for model, gain in zip(gains, (1.0, 3.0), strict=True):
        model.load_state_dict(generator.state_dict())
        model.gain = gain
    table = study({"one": gains[0], "three": gains[1]})
    assert scores(table.rows[0]) == scores(table.rows[1]) != scores(table.rows[2])


# ---- files


ROWS = {f"{number:016x}": Row(f"W{number}", bits=number, scores={"real": {"lsh": number / 7}}) for number in range(12)}


@pytest.fixture
def rows_file(tmp_path):
    kept = KeptRows(tmp_path / "rows.json")
    for key, row in ROWS.items():
        kept.add(key, row)
    return tmp_path / "rows.json"


def mutated(content, random):
    """Flip a bit, cut, repeat a line, swap the keys of two, or put a digit in place of another."""
    content = bytearray(content)
    position = random.randrange(len(content))
    kind = random.randrange(5)
    if kind == 0:
        content[position] ^= 1 << random.randrange(8)
    elif kind == 1:
        del content[position : position + random.randrange(1, 400)]
    elif kind == 2:
        lines = content.split(b"\n")
        lines.insert(random.randrange(len(lines)), random.choice(lines))
        content = b"\n".join(lines)
    elif kind == 3:
        first, second = (key.encode() for key in random.sample(list(ROWS), 2))
        content = content.replace(first, b"?").replace(second, first).replace(b"?", second)
    else:
        digits = [index for index, byte in enumerate(content) if chr(byte).isdigit()]
        content[random.choice(digits)] = ord(random.choice("0123456789"))
    return bytes(content)


@pytest.mark.filterwarnings("ignore:.*are damaged:UserWarning")
def test_no_damage_turns_a_kept_row_into_another(rows_file):
    content, chance = rows_file.read_bytes(), random.Random(0)
    assert KeptRows(rows_file)._rows == ROWS
    lost = []
    for _ in range(500):
        rows_file.write_bytes(mutated(content, chance))
        found = KeptRows(rows_file)._rows
        assert found.items() <= ROWS.items()
        lost.append(len(ROWS) - len(found))
    # What is damaged is lost alone.
    assert sorted(lost)[250] <= 1


def test_a_damaged_row_is_measured_again_and_said(study, tiny, tmp_path):
    first = study()
    path = tmp_path / "rows.json"
    start, row = path.read_text().split('"compressor": "quantize W8"')
    path.write_text(start + '"compressor": "quantize W8"' + row.replace('"macs": ', '"macs": 1', 1))
    kept = json.loads(path.read_text())
    images = tiny.images
    with pytest.warns(UserWarning, match=r"rows\.json: 1 of 3 lines are damaged, or of another version"):
        again = study()
    assert tiny.images == images + 40
    assert [row.scores for row in again.rows] == [row.scores for row in first.rows]
    assert len(json.loads(path.read_text())) == len(kept) == 3


@pytest.mark.parametrize("content", ['{"a": ', "", "[]", '{"a": {"compressor": "float"}}', "\xff\xfe", "{" * 5000])
@pytest.mark.filterwarnings("ignore:.*are damaged:UserWarning")
def test_a_file_of_rows_that_holds_none_is_no_obstacle(study, tmp_path, content):
    (tmp_path / "rows.json").write_text(content, encoding="latin-1")
    assert [row.status for row in study([]).rows] == ["measured"]
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 1


def test_damaged_features_are_extracted_again_and_said(study, tiny, tmp_path):
    first = study(keep_features=True)
    files = sorted((tmp_path / "features").iterdir())
    assert len(files) == 4
    (tmp_path / "rows.json").unlink()
    for file in files[:3]:
        content = bytearray(file.read_bytes())
        content[-3] ^= 4
        file.write_bytes(content)
    shutil.copy(files[3], files[0])
    with pytest.warns(UserWarning, match="extracted again") as warned:
        again = study(keep_features=True)
    texts = [str(item.message) for item in warned]
    assert sum("is damaged: its checksum does not fit" in text and "extracted again" in text for text in texts) == 2
    assert sum("was renamed" in text and "extracted again" in text for text in texts) == 1
    assert [row.scores for row in again.rows] == [row.scores for row in first.rows]


def test_no_damage_turns_kept_features_into_others(tmp_path):
    path, features = tmp_path / "abc.safetensors", torch.randn(20, 6)
    write_features(path, features)
    content, chance = path.read_bytes(), random.Random(0)
    for _ in range(200):
        broken = bytearray(content)
        broken[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(broken[: chance.choice((len(content), chance.randrange(len(content))))])
        with pytest.warns(UserWarning, match="extracted again"):
            assert read_features(path) is None


def test_samples_that_were_deleted_or_damaged_are_made_again(study, tiny, tmp_path):
    table = study(pictures=True)
    paths = [tmp_path / row.samples for row in table.rows]
    before = [path.read_bytes() for path in paths]
    shutil.rmtree(tmp_path / "samples")
    images = tiny.images
    assert study(pictures=True) == table
    assert [path.read_bytes() for path in paths] == before
    paths[1].write_bytes(before[1][:60])
    assert study(pictures=True) == table
    assert [path.read_bytes() for path in paths] == before
    assert tiny.images == images


def test_a_features_folder_that_was_deleted_is_made_again(study, tmp_path):
    table = study(keep_features=True)
    shutil.rmtree(tmp_path / "features")
    assert study([*(Quantizer(bits) for bits in (8, 3, 5))], keep_features=True).rows[:3] == table.rows


def add_forty(folder, name):
    """Wait for the other process, then add rows as fast as it does."""
    kept = KeptRows(Path(folder) / "rows.json")
    Path(folder, f"{name}.ready").touch()
    while len(list(Path(folder).glob("*.ready"))) < 2:
        time.sleep(0.01)
    for number in range(40):
        kept.add(f"{name}{number}", Row(f"{name}{number}"))


def test_two_studies_in_one_folder_lose_no_row(tmp_path):
    code = f"from test_study_cache import add_forty; add_forty({str(tmp_path)!r}, 'b')"
    root, here = Path(__file__).parents[1], Path(__file__).parent
    other = subprocess.Popen([sys.executable, "-c", code], cwd=here, env={**os.environ, "PYTHONPATH": str(root)})
    add_forty(tmp_path, "a")
    assert other.wait(120) == 0
    assert len(KeptRows(tmp_path / "rows.json")._rows) == len(json.loads((tmp_path / "rows.json").read_text())) == 80


def test_rows_that_another_study_finished_meanwhile_are_not_measured(study, tiny, tmp_path):
    elsewhere = study([Quantizer(8), Quantizer(3)])
    rows = (tmp_path / "rows.json").read_text()
    (tmp_path / "rows.json").unlink()

    class Meanwhile(Quantizer):
        def compress(self, *arguments):
            (tmp_path / "rows.json").write_text(rows)
            return super().compress(*arguments)

    images = tiny.images
    table = study({"meanwhile": Meanwhile(5), "quantize W8": Quantizer(8), "quantize W3": Quantizer(3)})
    assert tiny.images == images + 40  # of "meanwhile"; the features of the uncompressed model are kept
    assert table.rows[2:] == elsewhere.rows[1:]


def test_a_full_disk_ends_the_study_and_blames_no_row(study, tiny, tmp_path, monkeypatch):
    study([])

    def full(*_):
        raise CompressionError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("compressors.study.runner.save_samples", full)
        with pytest.raises(CompressionError, match="No space left"):
            study([Quantizer(8)])
    images = tiny.images
    assert study([Quantizer(8)]).rows[1].status == "measured"
    assert tiny.images == images + 40


def test_a_full_disk_keeps_the_rows(rows_file, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    kept, before = KeptRows(rows_file), rows_file.read_bytes()
    monkeypatch.setattr("pathlib.Path.mkdir", full)
    with pytest.raises(CompressionError, match="No space left"):
        kept.add("new", Row("new"))
    assert rows_file.read_bytes() == before
