"""Folders of images: which files count, and their pixels as 8-bit RGB without loss by the way."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from torch.utils.data import Dataset

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 0x0112  # tag of EXIF
# One file of these holds several pictures only if it is an animation or a stack; a photo of others may carry a preview.
_ANIMATED_FORMATS = ("GIF", "PNG", "TIFF", "WEBP")


@dataclass(frozen=True)
class Listing:
    """The images of a folder.

    Attributes:
        files: Paths of those that count, sorted.
        left_out: How many other images there are, by what keeps them out: an extension, or being in sub-folders.
    """

    files: list[str]
    left_out: Counter[str]

    def describe_left_out(self) -> str:
        """Return the numbers left out in words; empty if there are none."""
        return ", ".join(f"{count} {what}" for what, count in self.left_out.most_common())


def list_images(folder: str, deep: bool, extensions: str) -> Listing:
    """List the images of a folder, as torch-fidelity does and in its order.

    Args:
        folder: Path of the folder.
        deep: Whether sub-folders count.
        extensions: Comma-separated extensions that count, with or without a dot, in either case.

    Raises:
        OSError: The folder, or one in it, cannot be read.
    """
    wanted = {extension.strip().lower().removeprefix(".") for extension in extensions.split(",")} - {""}
    known = {extension.removeprefix(".") for extension in Image.registered_extensions()} | wanted
    files, left_out = [], Counter[str]()
    for root, _, names in os.walk(folder, onerror=_raise):
        is_below = os.path.realpath(root) != os.path.realpath(folder)
        for name in names:
            extension = Path(name).suffix.lower().removeprefix(".")
            if extension not in known:
                continue
            if extension not in wanted:
                left_out[f".{extension}"] += 1
            elif is_below and not deep:
                left_out["in sub-folders"] += 1
            else:
                files.append(os.path.realpath(Path(root) / name))
    return Listing(sorted(files), left_out)


def _raise(error: OSError) -> None:
    raise error


class ImageFolder(Dataset[torch.Tensor]):
    """Images of files.

    Args:
        files: Paths.
        size: Bring images to this size, ``size`` x ``size`` pixels, by resizing the shorter side and cropping the
            longer. Default: 0, leave them as they are.
    """

    def __init__(self, files: list[str], size: int = 0) -> None:
        self.files = files
        self.size = size
        fit = [torchvision.transforms.Resize(size), torchvision.transforms.CenterCrop(size)] if size > 0 else []
        self._fit = torchvision.transforms.Compose(fit)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return an image, uint8, 3 x H x W.

        Raises:
            ValueError: The file cannot be read, or not as 8-bit RGB without making colours up.
        """
        path = self.files[index]
        try:
            with Image.open(path) as image:
                pixels: torch.Tensor = torchvision.transforms.functional.pil_to_tensor(self._fit(as_rgb(image)))
        except Exception as error:  # Decoders raise whatever they like on broken files.
            raise ValueError(f'cannot read image "{path}": {error}') from error
        return pixels


def as_rgb(image: Image.Image) -> Image.Image:
    """Turn an image upright and into 8-bit RGB; 16 bits of grey are scaled to 8.

    Raises:
        ValueError: There is no one right way: transparent pixels, several frames, or samples of 32 bits, whose range no
            one states.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format in _ANIMATED_FORMATS:
        raise ValueError(f"it holds {frames} frames; save each as a file")
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    # Portable greymaps of over 8 bits, and PNG in older releases of Pillow, come as 32 bits that are 16.
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM")):
        if "transparency" in image.info:
            raise ValueError("it has transparent pixels; flatten it onto a background")
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "32-bit floating point"
        raise ValueError(f"its samples are {kind}, whose range is not stated; convert it to 8-bit RGB")
    if _is_transparent(image):
        raise ValueError("it has transparent pixels; flatten it onto a background")
    return image.convert("RGB")


def _is_transparent(image: Image.Image) -> bool:
    if not image.mode.lower().endswith("a") and "transparency" not in image.info:
        return False
    return int(np.asarray(image.convert("RGBA").getchannel("A")).min()) < 255


def check_image(image: torch.Tensor, what: str) -> None:
    """Refuse what torch-fidelity's extractors do not take for an image: all but uint8, 3 x H x W.

    Args:
        image: One sample.
        what: Beginning of the error message.
    """
    kind = f"{what} {str(image.dtype).removeprefix('torch.')}, {' x '.join(map(str, image.shape))}"
    if image.dtype != torch.uint8:
        raise ValueError(f"{kind}; (image * 255).round().to(torch.uint8) turns values in [0, 1] into such")
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"{kind}; image.expand(3, -1, -1) turns one grey channel into three")
