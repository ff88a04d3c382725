"""Files of the package: where they can be written, what they may hold, and what is refused when they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from generators import DCGAN, LATENT
from torch import nn

from compressors import CompressedModel, CompressionError, Quantizer, export_onnx
from compressors.common import files
from compressors.common.files import check_target, digest, read_file, whole_file, write_file, write_json
from compressors.sparse import hand_over

TENSORS = {"a": torch.arange(3), "b": torch.zeros((), dtype=torch.bfloat16)}


def test_a_target_that_cannot_be_written_is_named_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(CompressionError, match=r"path: the folder .*absent does not exist"):
        check_target(tmp_path / "absent" / "m.json")
    with pytest.raises(CompressionError, match=r"path: .* is a folder; a file is needed"):
        check_target(tmp_path)
    with pytest.raises(CompressionError, match=r"path must end in \.safetensors; got .*m\.pt"):
        write_file(tmp_path / "m.pt", "test", TENSORS, {})
    small = Quantizer(8).compress(DCGAN().eval(), (torch.zeros(1, LATENT),))
    with pytest.raises(CompressionError, match=r"path must end in \.safetensors; got .*small$"):
        small.save(tmp_path / "small")
    with pytest.raises(CompressionError, match=r"path must end in \.onnx; got .*small\.safetensors"):
        export_onnx(small, tmp_path / "small.safetensors", (torch.zeros(1, LATENT),))

    def refused(self):
        raise PermissionError("Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(CompressionError, match=r"path: the folder .* cannot be written to: Permission denied"):
        write_json(tmp_path / "m.json", {})
    assert list(tmp_path.iterdir()) == []


def test_json_is_written_whole_and_without_nan(tmp_path):
    path = tmp_path / "m.json"
    write_json(path, {"a": 1.5})
    for value in (float("nan"), float("inf")):
        with pytest.raises(CompressionError, match=r"path: .*m\.json cannot be written as JSON: .* not JSON compliant"):
            write_json(path, {"a": value})
    assert json.loads(path.read_text()) == {"a": 1.5}
    with pytest.raises(UnicodeEncodeError), whole_file(path) as temporary:
        temporary.write_text("half \ud800", encoding="utf-8")
    assert json.loads(path.read_text()) == {"a": 1.5}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_another_kind_version_or_format_is_named(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    write_file(path, "compressed model", TENSORS, {"x": [1, None]})
    tensors, content = read_file(path, "compressed model")
    assert content == {"x": [1, None]}
    assert all(torch.equal(tensors[key], value) for key, value in TENSORS.items())
    with pytest.raises(CompressionError, match=r"m\.safetensors holds a compressed model; a sparse training is needed"):
        read_file(path, "sparse training")
    monkeypatch.setattr(files, "VERSION", "3")
    with pytest.raises(CompressionError, match=r"has format 'compressors', version '2'; this release reads .*'3'"):
        read_file(path, "compressed model")


def test_a_digest_tells_types_shapes_values_and_order_apart():
    x = torch.arange(6.0)
    contents = (
        [x], [x.double()], [x.view(2, 3)], [x.flip(0)], [x, x], ["ab", "c"], ["a", "bc"], ["abc"], [x, "a"], ["a", x]
    )  # fmt: skip
    assert len({digest(content) for content in contents}) == len(contents)
    assert digest([x.view(2, 3).T]) == digest([x.view(2, 3).T.contiguous()])
    assert digest(["ab"]) == digest([b"ab"])


def test_a_sparse_file_of_a_layer_with_another_kernel_is_refused(tmp_path):
    def build(kernel):
        return nn.Sequential(nn.Conv2d(4, 4, kernel), nn.ReLU())

    model, path = build((3, 1)), tmp_path / "m.safetensors"
    with torch.no_grad():
        model[0].weight[1:] = 0
    hand_over(model, (torch.randn(1, 4, 9, 9),)).save(path)
    assert torch.equal(CompressedModel.load(path, lambda: build((3, 1))).model[0].weight, model[0].weight)
    with pytest.raises(CompressionError, match="factory builds another model"):
        CompressedModel.load(Path(path), lambda: build((1, 3)))
