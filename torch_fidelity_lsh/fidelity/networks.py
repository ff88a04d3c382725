"""Feature extractors beside the registered ones: networks of timm and torchvision by name, and any module.

``"timm:NAME"`` and ``"torchvision:NAME"`` are extractors whose layers are ``"pooled"``, what goes into the classifier,
and every submodule by its name. Images are resized as a whole, none of their margins cut off, to the size that the
network was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, wraps
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import normalize, resize

from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.metric.messages import did_you_mean, first_line

POOLED = "pooled"
OUTPUT = "output"
_DTYPES = {None: torch.float32, "float32": torch.float32, "float64": torch.float64}

Params = ParamSpec("Params")
Result = TypeVar("Result")


class Preparation(NamedTuple):
    """How images are made ready for a network: their size in pixels, mean and deviation of [0, 1], interpolation."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def __call__(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Make uint8 images B x 3 x H x W ready."""
        mode = InterpolationMode(self.interpolation)
        scaled = resize(images.to(dtype) / 255, list(self.size), mode, antialias=True).clamp(0, 1)
        ready: Tensor = normalize(scaled, self.mean, self.std)
        return ready


def extractor_class(name: str, argument: str = "feature_extractor") -> type[FeatureExtractorBase]:
    """Return the class of a feature extractor by name; networks of timm and torchvision are registered by this.

    Args:
        name: A registered name, ``"timm:NAME"`` or ``"torchvision:NAME"``.
        argument: Keyword that gave the name, for error messages.

    Raises:
        ValueError: There is no such extractor; the nearest name is told.
        ImportError: timm is not installed.
    """
    known = upstream.FEATURE_EXTRACTORS_REGISTRY
    package, _, model = name.partition(":")
    if name not in known and package in _PACKAGES:
        models = _PACKAGES[package].models()
        if model.partition(".")[0] not in models:
            raise ValueError(f'{argument}: {package} has no network "{model}"{did_you_mean(model, models)}')
        known[name] = type("Network", (NetworkExtractor,), {"package": package, "model": model})
    if name not in known:
        listed = ", ".join(each for each in known if ":" not in each)
        others = ", ".join(f"{package}:NAME" for package in _PACKAGES)
        raise ValueError(f'{argument}: "{name}" is not one of {listed}, {others}{did_you_mean(name, known)}')
    found: type[FeatureExtractorBase] = known[name]
    return found


class PluginExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """An extractor whose metrics look at one layer, all but those of classes."""

    default_layer: ClassVar[str]

    @classmethod
    def get_default_feature_layer_for_metric(cls, metric: str) -> str:
        """Return the layer a metric uses by default; raises `KeyError` for those of classes, as upstream's do."""
        if metric == "isc":
            raise KeyError(metric)
        return cls.default_layer

    @staticmethod
    def can_be_compiled() -> bool:
        """Tell that ``torch.compile`` is not used."""
        return False


def internal_dtype(name: str, given: str | None) -> torch.dtype:
    """Return what ``feature_extractor_internal_dtype`` names; raise `ValueError` where an extractor has none such."""
    if given not in _DTYPES:
        raise ValueError(f'feature_extractor_internal_dtype must be "float32" or "float64" with {name}; got {given!r}')
    return _DTYPES[given]


def refuse_settings(name: str, kwargs: Mapping[str, Any]) -> None:
    """Raise `ValueError` where a call sets the weights or the type of an extractor that has its own."""
    for keyword in ("feature_extractor_weights_path", "feature_extractor_internal_dtype"):
        if kwargs.get(keyword) is not None:
            raise ValueError(f"{keyword} is not for {name}, which has its own; got {kwargs[keyword]!r}")


class NetworkExtractor(PluginExtractor):
    """A network of timm or torchvision for 2D RGB 24-bit images.

    Args:
        name: Its name in the registry.
        features_list: Requested layers: ``"pooled"`` or names of submodules. Feature maps are averaged over their
            places, tokens of transformers over all of them.
        feature_extractor_weights_path: File of a state dictionary (``.safetensors``, or of ``torch.save``). Default:
            `None`, the package's own, which it downloads when first used.
        feature_extractor_internal_dtype: ``"float32"`` (default) or ``"float64"``.
        **kwargs: Other keywords of the call; not used.

    Raises:
        ValueError: There is no such layer, or the weights cannot be had or are not those of this network.
    """

    package: ClassVar[str]
    model: ClassVar[str]
    default_layer = POOLED

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | None = None,
        feature_extractor_internal_dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        provided = self.get_provided_features_list()
        for layer in features_list:
            if layer not in provided:
                raise ValueError(f'{name} has no layer "{layer}"{did_you_mean(layer, provided)}')
        super().__init__(name, features_list)
        self.dtype = internal_dtype(name, feature_extractor_internal_dtype)
        path, package = feature_extractor_weights_path, _PACKAGES[self.package]
        state = None if path is None else upstream.read_weights(path, name)
        try:
            self.network: nn.Module = package.create(self.model, state is None)
            if state is not None:
                self.network.load_state_dict(state)
        except Exception as error:  # Their hubs raise what they like where there is no network connection.
            where = f'"{path}" does not hold' if path is not None else "A download failed:"
            raise ValueError(
                f"{where} the weights of {name} ({type(error).__name__}: {first_line(error)}); "
                "feature_extractor_weights_path takes a file of its state dictionary"
            ) from error
        self.prepare = package.preparation(self.model, self.network)
        self.seen: dict[str, Tensor] = {}
        for layer in features_list:
            package.tap(self.network, layer, self.seen)
        self.to(self.dtype).requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return float32 tensors B x D of the requested layers, of images, uint8, B x 3 x H x W."""
        check_images(images)
        self.seen.clear()
        self.network(self.prepare(images, self.dtype))
        found = tuple(_flat(self.seen[layer], layer).float() for layer in self.features_list)
        self.seen.clear()
        return found

    @classmethod
    def get_provided_features_list(cls) -> tuple[str, ...]:
        """Return the names of the layers."""
        return _layers(cls.package, cls.model)


class _Package(NamedTuple):
    """How networks are had from a package."""

    models: Callable[[], list[str]]
    create: Callable[[str, bool], nn.Module]  # by name, with weights or without
    preparation: Callable[[str, nn.Module], Preparation]
    classifier: Callable[[nn.Module], nn.Module | None]

    def tap(self, network: nn.Module, layer: str, seen: dict[str, Tensor]) -> None:
        """Let a network put what a layer gives into ``seen`` whenever it runs."""
        head = self.classifier(network)
        if layer != POOLED:
            network.get_submodule(layer).register_forward_hook(
                lambda module, inputs, output: seen.__setitem__(layer, output)
            )
        elif head is not None:
            head.register_forward_pre_hook(lambda module, inputs: seen.__setitem__(POOLED, inputs[0]))
        else:
            network.register_forward_hook(lambda module, inputs, output: seen.__setitem__(POOLED, output))


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f'A "timm:" extractor needs timm ({error}): pip install "torch-fidelity-lsh[spaces]"'
        ) from None
    return timm


def _timm_preparation(model: str, network: nn.Module) -> Preparation:
    config = _timm().data.resolve_model_data_config(network)
    return Preparation(config["input_size"][1:], config["mean"], config["std"], config["interpolation"])


def _timm_classifier(network: Any) -> nn.Module | None:
    head = network.get_classifier()
    return head if isinstance(head, nn.Linear) else None


def _torchvision() -> Any:
    import torchvision.models

    return torchvision.models


def _torchvision_network(model: str, pretrained: bool) -> nn.Module:
    network: Any = _torchvision().get_model(model, weights="DEFAULT" if pretrained else None)
    if hasattr(network, "transform_input"):  # Weights of Inception and GoogLeNet, from whatever file, are for it.
        network.transform_input = True
    return network  # type: ignore[no-any-return]


def _torchvision_preparation(model: str, network: nn.Module) -> Preparation:
    made = _torchvision().get_model_weights(model).DEFAULT.transforms()
    (size,) = made.crop_size
    return Preparation((size, size), tuple(made.mean), tuple(made.std), made.interpolation.value)


def _last_linear(network: nn.Module) -> nn.Module | None:
    return next((module for module in reversed(list(network.modules())) if isinstance(module, nn.Linear)), None)


_PACKAGES = {
    "timm": _Package(
        models=lambda: list(_timm().list_models()),
        create=lambda model, pretrained: _timm().create_model(model, pretrained=pretrained),
        preparation=_timm_preparation,
        classifier=_timm_classifier,
    ),
    "torchvision": _Package(
        models=lambda: list(_torchvision().list_models(module=_torchvision())),
        create=_torchvision_network,
        preparation=_torchvision_preparation,
        classifier=_last_linear,
    ),
}


@cache
def _layers(package: str, model: str) -> tuple[str, ...]:
    with torch.device("meta"):
        network = _PACKAGES[package].create(model, False)
    return POOLED, *(name for name, _ in network.named_modules() if name)


def check_images(images: Any) -> None:
    """Raise `ValueError` unless images are uint8 B x 3 x H x W."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        got = f"{images.dtype}, {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"Expecting images as uint8 tensor B x 3 x H x W; got {got}")


def _flat(values: Any, layer: str) -> Tensor:
    """Average what a layer gives over its places, to B x D."""
    shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if isinstance(values, Tensor) and values.ndim == 2:
        return values
    if isinstance(values, Tensor) and values.ndim == 3:  # B x tokens x D
        return values.mean(dim=1)
    # Images are square, so that two equal sizes are those of places, whether channels come first or last.
    if isinstance(values, Tensor) and values.ndim == 4 and (shape[2] == shape[3]) != (shape[1] == shape[2]):
        return values.mean(dim=(2, 3) if shape[2] == shape[3] else (1, 2))
    raise ValueError(f'layer "{layer}" gives no features, feature maps of square images or tokens; got {shape}')


def takes_modules(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Let ``feature_extractor`` of a function be a module, or hold some: in the registry for the length of a call."""

    @wraps(function)
    def wrapper(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        given = kwargs.get("feature_extractor")
        several = isinstance(given, (list, tuple))
        with _registered(given if several else [given]) as names:
            if "feature_extractor" in kwargs:
                kwargs["feature_extractor"] = names if several else names[0]
            return function(*args, **kwargs)

    return wrapper


@contextmanager
def _registered(spaces: Any) -> Iterator[list[Any]]:
    known, added, names = upstream.FEATURE_EXTRACTORS_REGISTRY, [], []
    try:
        for space in spaces:
            name = space
            if isinstance(space, nn.Module):
                base = type(space).__name__
                name = next(each for each in _numbered(base) if each not in known)
                known[name] = _class_of(space)
                added.append(name)
            names.append(name)
        yield names
    finally:
        for name in added:
            del known[name]


def _numbered(base: str) -> Iterator[str]:
    yield base
    number = 2
    while True:
        yield f"{base}-{number}"
        number += 1


class _ModuleExtractor(PluginExtractor):
    """Any module from images, uint8 B x 3 x H x W, to features B x D."""

    wrapped: ClassVar[list[nn.Module]]  # in a list, or it would be taken for a method of the class
    default_layer = OUTPUT

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        refuse_settings(name, kwargs)
        self.module = deepcopy(self.wrapped[0])  # The caller's keeps its mode and device.

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.module(images)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"the module must return a tensor B x D, one row for each image; got {got}")
        return (found.float(),)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (OUTPUT,)


def _class_of(module: nn.Module) -> type[FeatureExtractorBase]:
    # The name tells features that are kept of it from those of others, and that it is none of torch-fidelity's.
    names = {"__module__": type(module).__module__, "__qualname__": repr(module), "wrapped": [module]}
    return type("Module", (_ModuleExtractor,), names)
