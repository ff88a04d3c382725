"""The search spaces of AGD, and a small one."""

from __future__ import annotations

from compressors.errors import CompressionError
from compressors.search.operators import Layer
from compressors.search.space import SearchSpace
from compressors.search.student import Skip


def cyclegan(body: int = 9, width: int = 64) -> SearchSpace:
    """Return AGD's space for image translation: a stem of stride 4, `body` layers, two transposed convolutions.

    Images -1 to 1 with sides that are multiples of 4; instance norm without parameters, no biases, zero padding.

    Args:
        body: layers with operators to choose from; default 9.
        width: of the first layer; those of the body are up to four times as wide; default 64.
    """
    stem = [Layer(width, ("conv",), kernel=7), *(Layer(width * n, ("conv",), stride=2) for n in (2, 4))]
    header = [Layer(width * n, ("tconv",), stride=2) for n in (2, 1)]
    image = Layer(3, ("conv",), (1.0,), kernel=7, norm=False, activation="none")
    return SearchSpace((*stem, *(Layer(4 * width) for _ in range(body)), *header, image))


def esrgan(cells: int = 5, per_cell: int = 5, width: int = 64, scale: int = 4, input_skip: bool = False) -> SearchSpace:
    """Return AGD's space for super-resolution: `cells` of layers at low resolution, then a fixed head.

    Images 0 to 1, no norm. Of the head all is fixed: at the default width its 91.3 G multiply-accumulates for a 256 x
    256 input are in every network of the space, and no budget can be below 92.9 G. A smaller `width` lowers that.

    Args:
        cells: each with a skip connection of scale 0.2; default 5.
        per_cell: layers of a cell; default 5.
        width: of all layers; default 64.
        scale: 2 or 4, the enlargement; default 4.
        input_skip: learn the difference from the input enlarged bilinearly, which takes far fewer steps; outputs are
            then not bounded. Default False, as AGD.
    """

    if scale not in (2, 4):
        raise CompressionError(f"scale must be 2 or 4; got {scale!r}")

    def fixed(channels: int, operator: str = "conv", stride: int = 1, activation: str = "none") -> Layer:
        return Layer(channels, (operator,), (1.0,), 3, stride, norm=False, bias=True, activation=activation)

    cell = (*(Layer(width) for _ in range(per_cell - 1)), Layer(width, ratios=(1.0,)))
    body = cell * cells
    ups = [fixed(width, "upconv", 2, "leaky_relu") for _ in range({2: 1, 4: 2}[scale])]
    layers = (fixed(width), *body, fixed(width), *ups, fixed(width, activation="leaky_relu"), fixed(3))
    skips = [Skip(1 + n * per_cell, (n + 1) * per_cell, 0.2) for n in range(cells)]
    return SearchSpace(
        layers,
        norm=None,
        skips=(Skip(1, len(body) + 1), *skips),
        output="none" if input_skip else "half_tanh",
        input_skip=input_skip,
    )


def tiny(body: int = 4, width: int = 8, ratios: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)) -> SearchSpace:
    """Return a small space of the form of `cyclegan`, for a few seconds on a CPU: batch norm, input added, -1 to 1.

    Args:
        body: layers with operators to choose from; default 4.
        width: of the first layer; default 8.
        ratios: widths to choose from, rounded to even numbers.
    """
    stem = [Layer(width, ("conv",), ratios), *(Layer(width * n, ("conv",), ratios, stride=2) for n in (2, 4))]
    inner = [Layer(4 * width, ratios=ratios, expansion=3) for _ in range(body)]
    header = [Layer(width * n, ("tconv",), ratios, stride=2) for n in (2, 1)]
    image = Layer(3, ("conv",), (1.0,), norm=False, activation="none")
    return SearchSpace((*stem, *inner, *header, image), norm="batch", input_skip=True, divisor=2, min_width=2)
