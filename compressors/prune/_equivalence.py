"""Whether a pruned model computes what the full one does with its removed channels at zero: the test of every match."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from compressors.common.generation import SEED
from compressors.common.measure import Inputs, run

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


def positions(model: nn.Module) -> nn.Module:
    """Return a copy whose tensors hold, in place of each element, its position in the flattened tensor.

    Once channels are removed from it, it tells which elements stay: see `gathered` and `zeroed`.
    """
    marked = copy.deepcopy(model)
    for parameter in marked.parameters():
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float64).view_as(parameter)
    for module, key, buffer in _buffers(marked):
        module._buffers[key.rpartition(".")[2]] = torch.arange(buffer.numel(), dtype=torch.float64).view_as(buffer)
    return marked


def gathered(pruned: nn.Module, source: nn.Module) -> nn.Module:
    """Return a model of the structure of `pruned`, a result of `positions`, with the values of `source`."""
    model = copy.deepcopy(pruned)
    values = dict(source.named_parameters(remove_duplicate=False)) | dict(source.named_buffers(remove_duplicate=False))
    for name, parameter in model.named_parameters():
        parameter.data = _elements(values[name].detach(), parameter.detach())
    for module, key, buffer in _buffers(model):
        module._buffers[key.rpartition(".")[2]] = _elements(values[key], buffer)
    return model


def zeroed(pruned: nn.Module, source: nn.Module) -> nn.Module:
    """Return a copy of `source` with zeros where parameters have no place in `pruned`, a result of `positions`."""
    model = copy.deepcopy(source)
    left = dict(pruned.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters():
        stays = torch.zeros(parameter.numel(), dtype=torch.bool)
        stays[left[name].detach().flatten().long()] = True
        parameter.data = parameter.data * stays.to(parameter.device).view_as(parameter)
    return model


def _elements(values: Tensor, marks: Tensor) -> Tensor:
    return values.flatten()[marks.to(values.device).long().flatten()].view(marks.shape).clone()


def _buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            yield module, name, buffer


def probe_of(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """Return a copy with random weights of about equal effect, in double precision where it runs so, and its inputs.

    Which channels belong together depends on no weight, but trained weights can hide a wrong match: zero gains of
    attention, small residuals, saturated outputs.
    """
    random = _randomised(model)
    for candidate in (random, copy.deepcopy(model)):
        for dtype in _TOLERANCE:
            cast, arguments = candidate.to(dtype), tree_map(lambda item, to=dtype: _cast(item, to), inputs)
            try:
                outputs = run(cast, arguments)
            except Exception:  # A forward that names a dtype fails in the other.
                continue
            if all(output.isfinite().all() and output.count_nonzero() for output in outputs):
                return cast, arguments
    return copy.deepcopy(model), inputs


def _cast(item: Any, dtype: torch.dtype) -> Any:
    return item.to(dtype) if isinstance(item, Tensor) and item.is_floating_point() else item


def _randomised(model: nn.Module) -> nn.Module:
    random, generator = copy.deepcopy(model), torch.Generator().manual_seed(SEED)
    for name, parameter in random.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        if parameter.dim() > 1:
            parameter.data = noise * math.sqrt(len(parameter) / max(parameter.numel(), 1))
        else:
            parameter.data = 0.2 * noise + (1.0 if name.endswith("weight") or parameter.numel() == 1 else 0.0)
    for module in random.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()
    return random


def mismatch(pruned: nn.Module, probe: nn.Module, inputs: Inputs) -> str | None:
    """Return how `pruned`, a result of `positions`, differs from `probe` with its removed channels at zero, or None.

    Both run on the values of `probe`. Means and variances over channels, as in norms, divide by the full number of
    channels in both. A factor that `forward` derives from that number, as attention does, is not looked over: it would
    change what the channels that are left compute.
    """
    recorder = _FullWidth()
    try:
        with recorder:
            expected = run(zeroed(pruned, probe), inputs)
    except Exception as error:
        return f"zeros in its place fail: {error}"
    try:
        small = gathered(pruned, probe)
        with _FullWidth(iter(recorder.seen)):
            got = run(small, inputs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if [output.shape for output in got] != [output.shape for output in expected]:
        return "the outputs change their shape"
    if any(small.get_parameter(name).shape != left.shape for name, left in pruned.named_parameters()):
        return "forward makes its weights anew"
    for full, output in zip(expected, got, strict=True):
        scale, distance = float(full.double().norm()), float((full.double() - output.double()).norm())
        if not distance <= _TOLERANCE.get(full.dtype, 1e-2) * max(scale, 1e-30):
            return "the channels that are left do not reach the layers that were made for them"
    return None


class _FullWidth(TorchFunctionMode):
    """Records what depends on the number of channels in the full model, and plays it back in the pruned one.

    A channel of zeros adds nothing to a sum; what it adds to are the numbers of elements that means divide by.
    """

    def __init__(self, replay: Iterator[float] | None = None) -> None:
        super().__init__()
        self.seen: list[float] = []
        self._replay = replay

    def _full(self, value: float) -> Any:
        if self._replay is not None:
            return next(self._replay)
        self.seen.append(value)
        return value

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name in ("layer_norm", "rms_norm", "group_norm"):
            return self._norm(name, *args, **options)
        if name == "mean":
            mean = func(*args, **options)
            count = _first(args, options).numel() / max(mean.numel(), 1)
            return mean * (count / self._full(count))
        if name in ("var", "std", "var_mean", "std_mean"):
            return self._variance(name, *args, **options)
        if name in _RANDOM:
            drawn = func(*args, **options)
            return drawn.zero_() if isinstance(drawn, Tensor) else drawn
        elif name in ("dropout", "dropout2d", "feature_dropout", "alpha_dropout"):
            return _first(args, options)
        return func(*args, **options)

    def _norm(
        self,
        name: str,
        input: Tensor,
        shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float | None = 1e-5,
        *_: Any,
    ) -> Tensor:
        if name == "group_norm":
            grouped = input.reshape(len(input), shape, -1)
            normed = self._standardised(grouped, (2,), eps).view_as(input)
            affine = (1, -1, *[1] * (input.dim() - 2))
            normed = normed if weight is None else normed * weight.view(affine)
            return normed if bias is None else normed + bias.view(affine)
        dims = tuple(range(-(len(shape) if isinstance(shape, tuple | list | torch.Size) else 1), 0))
        normed = self._standardised(input, dims, eps, centre=name == "layer_norm")
        normed = normed if weight is None else normed * weight
        return normed if bias is None else normed + bias

    def _standardised(self, input: Tensor, dims: tuple[int, ...], eps: float | None, centre: bool = True) -> Tensor:
        mean, square = self._moments(input, dims)
        mean = mean if centre else torch.zeros_like(mean)
        eps = torch.finfo(input.dtype).eps if eps is None else eps
        return (input - mean) * (square - mean.square() + eps).rsqrt()

    def _moments(self, input: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        count = self._full(math.prod(input.shape[dim] for dim in dims))
        return input.sum(dims, keepdim=True) / count, input.square().sum(dims, keepdim=True) / count

    def _variance(
        self,
        name: str,
        input: Tensor,
        dim: Any = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: float | None = None,
    ) -> Any:
        if isinstance(dim, bool):
            dim, unbiased = None, dim
        dims = tuple(range(input.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
        full = self._full(math.prod(input.shape[d] for d in dims))
        mean = input.sum(dims, keepdim=True) / full
        square = input.square().sum(dims, keepdim=True) / full
        correction = float(unbiased) if correction is None else correction
        spread = (square - mean.square()).clamp_min(0) * full / (full - correction)
        spread = spread.sqrt() if name.startswith("std") else spread
        if not keepdim:
            mean, spread = (value.squeeze(dims) for value in (mean, spread))
        return (spread, mean) if name.endswith("_mean") else spread


_RANDOM = {"rand", "randn", "rand_like", "randn_like", "normal", "normal_", "uniform_", "bernoulli"}


def _first(args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    return args[0] if args else options["input"]
