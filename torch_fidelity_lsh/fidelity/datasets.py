"""Data sets as inputs: folders of images, data set objects, and those that torch-fidelity knows by name."""

from __future__ import annotations

import hashlib
import multiprocessing
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from torch_fidelity_lsh.fidelity import upstream
from torch_fidelity_lsh.fidelity.images import ImageFolder, check_image, list_images
from torch_fidelity_lsh.metric.files import digest_of
from torch_fidelity_lsh.metric.guard import default_modes
from torch_fidelity_lsh.metric.messages import first_line

FULLY = 1000
"""Up to so many items of a data set are all compared to tell it from another; of more, so many spread evenly."""


class DatasetSamples:
    """Items of a data set.

    Args:
        argument: Name of the keyword that gave the data set.
        dataset: The data set.
        call: Complete keywords of the call.

    Raises:
        ValueError: The data set is empty, or has no length.
    """

    is_divisible = True

    def __init__(self, argument: str, dataset: Dataset[Any], call: Mapping[str, Any]) -> None:
        self.argument = argument
        self._call = call
        self.dataset = dataset
        if isinstance(dataset, IterableDataset):
            raise ValueError(f"{argument}: an IterableDataset has no items by number; pass a Dataset with a length")
        if not isinstance(dataset, Sized):
            raise ValueError(f"{argument}: the data set {type(dataset).__name__} has no length (__len__)")
        if self.count() == 0:
            raise ValueError(f"{argument}: the data set is empty")

    def count(self) -> int:
        """Return the length of the data set."""
        try:
            return len(self.dataset)  # type: ignore[arg-type]
        except Exception as error:
            raise ValueError(f"{self.argument}: the length of the data set is not known: {error}") from error

    def look(self, only_rgb: bool) -> None:
        """Read the first item."""
        _check_item(self.item(0), only_rgb, self.argument)

    def identity(self, items: int) -> str:
        """Return class and length of the data set, with a digest of some items."""
        count = self.count()
        digest = hashlib.sha256(f"{type(self.dataset).__qualname__} {count}".encode())
        for index in _spread(count, items):
            digest.update(digest_of({"item": self.item(index)}).encode())
        return f"data set of {count} samples, {digest.hexdigest()[:16]}"

    def batches(self, rank: int = 0, size: int = 1) -> Iterator[torch.Tensor]:
        """Yield the batches of one of ``size`` shares."""
        batches = _Batches(self.dataset, self.count(), self._call["batch_size"])
        own = range(len(batches))[share(len(batches), rank, size)]
        for batch in self._surviving(self._loader(batches, own)):
            if isinstance(batch, _Failure):
                raise ValueError(f"{self.argument}: {batch.message}") from _InWorkerError(batch.trace)
            yield batch

    def _loader(self, batches: _Batches, own: range) -> Iterator[Any]:
        workers = min(4, 2 * multiprocessing.cpu_count())
        if self._call["save_cpu_ram"] or multiprocessing.current_process().daemon:  # Daemons may have no children.
            workers = 0
        try:
            with warnings.catch_warnings():  # How many processes there are is not for users to act on.
                warnings.filterwarnings("ignore", message="This DataLoader will create")
                pin_memory = bool(self._call["cuda"])
                return iter(
                    DataLoader(batches, batch_size=None, sampler=own, num_workers=workers, pin_memory=pin_memory)
                )
        except Exception as error:  # Where processes are not forked, the data set must be pickled.
            raise ValueError(
                f"{self.argument}: the data set cannot be sent to processes that load images "
                f"({type(error).__name__}: {error}); save_cpu_ram=True loads them in this one"
            ) from error

    def _surviving(self, loader: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from loader
        except RuntimeError as error:  # For one, where memory that processes share is small.
            raise ValueError(
                f"{self.argument}: a process that loads images has ended ({first_line(error)}); "
                "save_cpu_ram=True loads them in this one"
            ) from error

    @default_modes()  # Looking moves no random state, on which augmentations of a data set may depend.
    def item(self, index: int) -> Any:
        """Return one item."""
        item = _Batches(self.dataset, self.count(), 1).item(index)
        if isinstance(item, _Failure):
            raise ValueError(f"{self.argument}: {item.message}") from _InWorkerError(item.trace)
        return item


class FolderSamples(DatasetSamples):
    """Images of a folder."""

    def __init__(self, argument: str, folder: str, files: list[str], call: Mapping[str, Any]) -> None:
        super().__init__(argument, ImageFolder(files, call["samples_resize_and_crop"]), call)
        self.folder, self.files = Path(folder).resolve(), files

    def identity(self, items: int) -> str:
        """Return a digest of names, sizes and the contents of some files; of times too where few are read."""
        digest = hashlib.sha256()
        for path in self.files:
            status = Path(path).stat()
            digest.update(f"{Path(path).name} {status.st_size}\n".encode())
            if items >= FULLY:  # On one machine. Copies of a folder on several have times of their own.
                digest.update(f"{status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
        if items < FULLY:
            for index in _spread(len(self.files), items):
                digest.update(Path(self.files[index]).read_bytes())
        return f"folder of {len(self.files)} images, {digest.hexdigest()[:16]}"


def open_folder(argument: str, folder: str, call: Mapping[str, Any]) -> FolderSamples:
    """Open a folder of images; a warning counts images in it that are left out.

    Raises:
        ValueError: No image counts; the message says what does and what is there.
    """
    extensions = call["samples_find_ext"]
    try:
        listing = list_images(folder, call["samples_find_deep"], extensions)
    except OSError as error:
        raise ValueError(f"{argument}: a folder cannot be read: {error}") from error
    advice = "samples_find_ext changes these, samples_find_deep=True looks into sub-folders too"
    left_out = listing.describe_left_out()
    if not listing.files:
        raise ValueError(
            f'{argument}: folder "{folder}" holds no images with the extensions {extensions}'
            f"{f' (left out: {left_out})' if left_out else ''}; {advice}"
        )
    if left_out:
        total = len(listing.files) + listing.left_out.total()
        warnings.warn(
            f'{argument}: {len(listing.files)} of {total} images in "{folder}" are used, with the extensions '
            f"{extensions}; left out: {left_out}; {advice}",
            stacklevel=2,
        )
    return FolderSamples(argument, folder, listing.files, call)


class RegisteredSamples:
    """A data set that is registered with torch-fidelity by name; opened late, since it may be downloaded."""

    is_divisible = True

    def __init__(self, argument: str, name: str, call: Mapping[str, Any]) -> None:
        self.argument = argument
        self._name, self._call = name, call
        self._opened: DatasetSamples | None = None

    def count(self) -> int | None:
        """Return the length once the data set is open."""
        return self._opened.count() if self._opened else None

    def look(self, only_rgb: bool) -> None:
        """Do nothing: torch-fidelity's own data sets hold images, and others are looked at when they are opened."""

    def identity(self, items: int) -> str:
        """Return the name of a data set of torch-fidelity; read items of others."""
        function = upstream.DATASETS_REGISTRY[self._name]
        if str(function.__module__).startswith("torch_fidelity."):
            return f"registered data set {self._name}"
        return self._open().identity(items)

    def batches(self, rank: int = 0, size: int = 1) -> Iterator[torch.Tensor]:
        """Open the data set, and yield the batches of one of ``size`` shares."""
        return self._open().batches(rank, size)

    def _open(self) -> DatasetSamples:
        if self._opened is None:
            try:
                dataset = upstream.open_registered_dataset(self._name, self._call)
            except Exception as error:
                raise ValueError(f'{self.argument}: data set "{self._name}" cannot be opened: {error}') from error
            self._opened = DatasetSamples(self.argument, dataset, self._call)
        return self._opened


class GoneSamples:
    """An input that is not there any more; features of it may be kept under its cache name."""

    is_divisible = True

    def __init__(self, argument: str, path: str) -> None:
        self.argument, self.path = argument, path

    def count(self) -> int | None:
        """Return `None`: it is not known."""
        return None

    def look(self, only_rgb: bool) -> None:
        """Do nothing."""

    def identity(self, items: int) -> str:
        """Return nothing: what it was is not known."""
        return ""

    def batches(self, rank: int = 0, size: int = 1) -> Iterator[torch.Tensor]:
        """Refuse: there is nothing to read."""
        raise ValueError(f'{self.argument}: "{self.path}" does not exist, and its features are not in the cache')


def _check_item(item: Any, only_rgb: bool, argument: str) -> None:
    what = f"{argument}: items of the data set must be images as tensors, uint8, 3 x H x W; the first is"
    if isinstance(item, (tuple, list, dict)):
        raise ValueError(f"{what} a {type(item).__name__}; wrap the data set in one that returns the image alone")
    if not isinstance(item, torch.Tensor):
        raise ValueError(f"{what} of type {type(item).__name__}")
    if only_rgb:
        check_image(item, what)


class _Failure:
    """What went wrong in a process that loads images."""

    def __init__(self, message: str, trace: str = "") -> None:
        self.message, self.trace = message, trace


class _InWorkerError(Exception):
    """Carries a traceback from where it happened, as the cause of the error that the caller sees."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Batches(Dataset[Any]):
    """The batches of a data set by number. A failure is an item too, since loaders garble exceptions."""

    def __init__(self, dataset: Dataset[Any], count: int, batch_size: int) -> None:
        self.dataset, self.count, self.batch_size = dataset, count, batch_size

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __getitem__(self, number: int) -> torch.Tensor | _Failure:
        first = number * self.batch_size
        items: list[torch.Tensor] = []
        for index in range(first, min(first + self.batch_size, self.count)):
            item = self.item(index)
            if isinstance(item, _Failure):
                return item
            if not isinstance(item, torch.Tensor):
                return _Failure(f"item {index} of the data set is of type {type(item).__name__}, not an image tensor")
            if items and (item.shape, item.dtype) != (items[0].shape, items[0].dtype):
                return self._difference(first, items[0], index, item)
            items.append(item)
        return torch.stack(items)

    def item(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:
            what = "" if isinstance(self.dataset, ImageFolder) else f"item {index} of the data set cannot be read: "
            kind = "" if isinstance(self.dataset, ImageFolder) else f"{type(error).__name__}: "
            return _Failure(f"{what}{kind}{error}", traceback.format_exc())

    def _difference(self, index: int, one: torch.Tensor, other_index: int, other: torch.Tensor) -> _Failure:
        if isinstance(self.dataset, ImageFolder):
            pair = (
                f'{image.shape[2]}x{image.shape[1]} ("{self.dataset.files[i]}")'
                for i, image in ((index, one), (other_index, other))
            )
            advice = "set samples_resize_and_crop to bring them to one size"
            return _Failure(f"images differ in size: {', '.join(pair)}; {advice}")
        first, second = (
            f"item {i} is {str(image.dtype).removeprefix('torch.')}, {' x '.join(map(str, image.shape))}"
            for i, image in ((index, one), (other_index, other))
        )
        return _Failure(f"items of the data set differ: {first}; {second}; bring them to one size and type")


def share(number: int, rank: int, size: int) -> slice:
    """Return which of so many batches are those of one of ``size`` shares."""
    first, end = (-(-number * r // size) for r in (rank, rank + 1))
    return slice(first, end)


def _spread(count: int, most: int) -> list[int]:
    return sorted({index * (count - 1) // max(1, min(count, most) - 1) for index in range(min(count, most))})
