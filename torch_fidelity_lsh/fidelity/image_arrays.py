"""Images in one ``.npz`` file, ``arr_0``, as ADM's scripts write samples; read and written batch by batch."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from torch_fidelity_lsh.fidelity.array_files import Member, look_at_npz, read_blocks
from torch_fidelity_lsh.fidelity.datasets import share
from torch_fidelity_lsh.metric.files import whole_file

IMAGES = "arr_0"
SUFFIX = ".npz"


def images_in(path: str) -> Member | None:
    """Return what an ``.npz`` file says of its array ``arr_0`` where that is no table of features, else `None`."""
    found = look_at_npz(path).get(IMAGES) if path.lower().endswith(SUFFIX) else None
    return None if found is None or len(found.shape) == 2 else found


class ImageArraySamples:
    """Images of the array ``arr_0``, uint8, N x H x W x 3. They are read in order, and no more than a batch is held.

    Args:
        argument: Name of the keyword that gave the file.
        path: The file.
        found: What it says of the array.
        call: Complete keywords of the call.

    Raises:
        ValueError: The array is of another type or shape, or empty.
    """

    is_divisible = True

    def __init__(self, argument: str, path: str, found: Member, call: Mapping[str, Any]) -> None:
        self.argument = argument
        self.path, self._found, self._batch_size = path, found, call["batch_size"]
        self._where = f'{argument}, file "{path}"'
        shape = " x ".join(map(str, found.shape))
        if found.dtype != np.uint8 or len(found.shape) != 4 or found.shape[3] != 3 or 0 in found.shape:
            raise ValueError(
                f"{self._where}: arr_0 must be images, uint8, N x H x W x 3, or features, floats N x D; got "
                f"{found.dtype}, {shape}"
            )
        if call["samples_resize_and_crop"]:
            raise ValueError(f"{self._where}: samples_resize_and_crop is for folders of images, and these are an array")

    def count(self) -> int:
        """Return the number of images."""
        return self._found.shape[0]

    def look(self, only_rgb: bool) -> None:
        """Do nothing: the header of the file has told all there is."""

    def identity(self, items: int) -> str:
        """Return shape and checksum of all images."""
        return f"array of images {' x '.join(map(str, self._found.shape))}, CRC {self._found.checksum:08x}"

    def batches(self, rank: int = 0, size: int = 1) -> Iterator[torch.Tensor]:
        """Yield the batches of one of ``size`` shares, uint8 N x 3 x H x W."""
        number_of_batches = -(-self.count() // self._batch_size)
        own = range(number_of_batches)[share(number_of_batches, rank, size)]
        for number, block in enumerate(read_blocks(self.path, IMAGES, self._where, self._batch_size)):
            if number in own:
                yield torch.from_numpy(block).permute(0, 3, 1, 2).contiguous()


def save_images(batches: Iterable[torch.Tensor], count: int, path: str | os.PathLike[str], argument: str) -> None:
    """Write images as the array ``arr_0``, uint8, N x H x W x 3, of an ``.npz`` file; an old file is replaced at once.

    Args:
        batches: Images, uint8, B x 3 x H x W; no more than a batch is held in memory.
        count: How many images there are.
        path: File to write.
        argument: What gave the images, for error messages.

    Raises:
        ValueError: The samples are no images of one size.
        OSError: The file cannot be written.
    """
    size: tuple[int, ...] = ()
    with (
        whole_file(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as stream,
    ):
        for batch in batches:
            kind = f"{str(batch.dtype).removeprefix('torch.')}, {' x '.join(map(str, batch.shape))}"
            if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
                raise ValueError(f"{argument}: images must be uint8, N x 3 x H x W; got {kind}")
            images = batch.permute(0, 2, 3, 1).contiguous().cpu().numpy()
            if not size:
                size = images.shape[1:]
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *size)}
                np.lib.format.write_array_header_1_0(stream, header)
            if images.shape[1:] != size:
                raise ValueError(f"{argument}: images differ in size: {size[0]} x {size[1]} first, then {kind}")
            stream.write(images.data)
