"""Arrays in files that others wrote: ``.npy``, ``.npz``, ``.safetensors``; checked before memory is given to them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

from torch_fidelity_lsh.metric.files import check_digest
from torch_fidelity_lsh.metric.messages import first_line

MAX_EXPANSION = 100  # Features are noise to a packer: files of them grow twofold, of many zeros tenfold.
ALWAYS_ALLOWED = 2**28  # bytes


@dataclass(frozen=True)
class Arrays:
    """An open file of arrays.

    Attributes:
        names: Names of the arrays.
        read: Reads one.
    """

    names: list[str]
    read: Callable[[str], torch.Tensor | npt.NDArray[Any]]


@contextmanager
def open_arrays(path: str, where: str, max_bytes: int | None = None) -> Iterator[Arrays]:
    """Open a file of arrays for a ``with`` block.

    Args:
        path: File that ends in ``.npy``, ``.npz`` or ``.safetensors``.
        where: What the file is called in error messages.
        max_bytes: Largest size of an array once it is unpacked. Default: `None`, 100 times its file, or 256 MiB.

    Raises:
        ValueError: The file is damaged, holds something other than arrays of numbers, or unpacks to more.
    """
    before = _state(path)
    limit = max(ALWAYS_ALLOWED, MAX_EXPANSION * Path(path).stat().st_size) if max_bytes is None else max_bytes
    opener = {".npy": _open_npy, ".npz": _open_npz, ".safetensors": _open_safetensors}[Path(path).suffix.lower()]
    with ExitStack() as stack:
        with _failures_named(where):
            arrays = stack.enter_context(opener(path, limit))

        def read(name: str) -> torch.Tensor | npt.NDArray[Any]:
            with _failures_named(where):
                values = arrays.read(name)
                if _state(path) != before:  # Parsers go back to the path for each array.
                    raise RuntimeError("another file was put in its place while it was read")
                return values

        yield Arrays(arrays.names, read)


def _state(path: str) -> tuple[int, int, int]:
    status = Path(path).stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


class _TooLargeError(Exception):
    pass


@contextmanager
def _failures_named(where: str) -> Iterator[None]:
    try:
        yield
    except _TooLargeError as error:
        raise ValueError(f"{where}: {error}; features_max_bytes allows more") from None
    except Exception as error:  # Parsers of files raise whatever they like on damaged ones.
        text = first_line(error)[:200]
        raise ValueError(
            f"{where}: damaged, or holds something other than arrays of numbers ({type(error).__name__}: {text})"
        ) from error


@contextmanager
def _open_npy(path: str, limit: int) -> Iterator[Arrays]:
    with Path(path).open("rb") as file:
        size = Path(path).stat().st_size
        yield Arrays(["features"], lambda _: _read_array(file, size))


@contextmanager
def _open_npz(path: str, limit: int) -> Iterator[Arrays]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        members = {name.removesuffix(".npy"): name for name in names}
        if len(members) < len(names):
            raise ValueError("several arrays have one name")

        def read(name: str) -> npt.NDArray[Any]:
            size = archive.getinfo(members[name]).file_size
            if size > limit:
                raise _TooLargeError(f'array "{name}" of {Path(path).stat().st_size} bytes unpacks to {size}')
            with archive.open(members[name]) as member:
                return _read_array(member, size)

        yield Arrays(list(members), read)


@dataclass(frozen=True)
class Member:
    """An array inside an ``.npz`` file, as its header tells.

    Attributes:
        shape: Its shape.
        dtype: Its type.
        checksum: CRC-32 of all its bytes, from the directory of the archive.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    checksum: int


def look_at_npz(path: str) -> dict[str, Member]:
    """Return the arrays of numbers of an ``.npz`` file by name, having read headers alone; none of a damaged file."""
    found = {}
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # The parser raises what it likes.
        for info in archive.infolist():
            with suppress(Exception), archive.open(info) as stream:
                shape, _, dtype = _read_header(stream, info.file_size)
                found[info.filename.removesuffix(".npy")] = Member(shape, dtype, info.CRC)
    return found


def read_blocks(path: str, name: str, where: str, rows: int) -> Iterator[npt.NDArray[Any]]:
    """Yield an array of an ``.npz`` file, ``rows`` of its first dimension at a time, no more being held in memory.

    Args:
        path: The file.
        name: Name of the array.
        where: What the file is called in error messages.
        rows: Length of the blocks; the last one may be shorter.

    Raises:
        ValueError: The array is damaged, or is stored column by column.
    """
    with _failures_named(where), zipfile.ZipFile(path) as archive:
        size = archive.getinfo(f"{name}.npy").file_size
        with archive.open(f"{name}.npy") as stream:
            shape, fortran_order, dtype = _read_header(stream, size)
            if fortran_order:
                raise ValueError(f'"{name}" is stored column by column')
            for start in range(0, shape[0], rows):
                block = (min(rows, shape[0] - start), *shape[1:])
                yield _read_values(stream, math.prod(block), dtype).reshape(block)


def _read_array(stream: IO[bytes], size: int) -> npt.NDArray[Any]:
    """Read an array of the ``.npy`` format, whose header and data must make up exactly ``size`` bytes."""
    shape, fortran_order, dtype = _read_header(stream, size)
    return _read_values(stream, math.prod(shape), dtype).reshape(shape, order="F" if fortran_order else "C")


def _read_header(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"version {version[0]}.{version[1]} of the .npy format is not one of arrays of numbers")
    shape, fortran_order, dtype = reader(stream)
    if dtype.hasobject or not (np.issubdtype(dtype, np.number) or dtype == np.bool_):
        raise ValueError(f"it holds {dtype}")
    expected = stream.tell() + math.prod(shape) * dtype.itemsize
    if expected != size:
        raise ValueError(f"its header promises {expected} bytes, and there are {size}")
    return shape, fortran_order, dtype


def _read_values(stream: IO[bytes], count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    content = np.empty(count * dtype.itemsize, np.uint8)
    rest = content.data
    while rest:
        rest = rest[_read_some(stream, rest) :]
    return content.view(dtype)


def _read_some(stream: IO[bytes], buffer: memoryview) -> int:
    number: int = stream.readinto(buffer)  # type: ignore[attr-defined]
    if not number:
        raise EOFError("the data end too soon")
    return number


@contextmanager
def _open_safetensors(path: str, limit: int) -> Iterator[Arrays]:
    check_digest(path)
    with safe_open(path, framework="pt") as file:
        yield Arrays(list(file.keys()), file.get_tensor)
