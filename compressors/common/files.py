"""Files: written whole or not at all, checked when they are read, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from compressors.errors import CompressionError

FORMAT, VERSION = "compressors", "2"
"""The header of every safetensors file of this package; the version changes with the meaning of its content."""


def check_target(path: str | Path, suffix: str | None = None) -> Path:
    """Return `path` if a file can be written there; call it before long work whose result goes there.

    Args:
        path: the file to write; an existing one will be replaced.
        suffix: the ending it must have, such as ".json"; None (default) accepts any.

    Raises:
        CompressionError: the folder does not exist, `path` is a folder, or its ending is another.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise CompressionError(f"path: the folder {target.parent} does not exist")
    if target.is_dir():
        raise CompressionError(f"path: {target} is a folder; a file is needed")
    if suffix is not None and target.suffix != suffix:
        raise CompressionError(f"path must end in {suffix}; got {target}")
    return target


@contextmanager
def whole_file(path: str | Path, suffix: str | None = None) -> Iterator[Path]:
    """Give a temporary path to write to, which replaces `path` if no exception is raised.

    Readers see the old file or the new one, also beside other writers. What a killed writer has left is removed.

    Raises:
        CompressionError: `path` is unusable, see `check_target`, or nothing can be written to its folder.
    """
    target = check_target(path, suffix)
    _sweep(target)
    name = f".{target.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}.part"
    directory = target.with_name(name)
    try:
        directory.mkdir()
    except OSError as error:
        raise CompressionError(f"path: the folder {target.parent} cannot be written to: {error}") from error
    try:
        temporary = directory / target.name
        yield temporary
        temporary.replace(target)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove what killed writers of this file have left: those of this machine that run no more."""
    start = f".{target.name}.{socket.gethostname()}."
    for leftover in target.parent.iterdir():
        name = leftover.name
        if name.startswith(start) and name.endswith(".part") and not _runs(name.removeprefix(start).partition(".")[0]):
            shutil.rmtree(leftover, ignore_errors=True)


def _runs(process: str) -> bool:
    if os.name != "posix" or not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8), whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as JSON; raises `CompressionError` where it holds NaN or infinity, which JSON does not know."""
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except ValueError as error:
        raise CompressionError(f"path: {path} cannot be written as JSON: {error}") from error
    write_text(path, text + "\n")


def write_file(path: str | Path, kind: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Write tensors and JSON `content` as one safetensors file, whole or not at all.

    The header holds format, version, kind, content, and a SHA-256 of kind, content and tensors.

    Args:
        path: ends in ".safetensors".
        kind: what the file is, such as "compressed model"; `read_file` asks for the same.
        tensors: on the CPU, contiguous.
        content: whatever JSON can hold.
    """
    text = json.dumps(content)
    header = {"format": FORMAT, "version": VERSION, "kind": kind, "content": text}
    with whole_file(path, ".safetensors") as temporary:
        temporary.write_bytes(to_safetensors(dict(tensors), {**header, "sha256": _checksum(kind, text, tensors)}))


def read_file(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the content of a file of `write_file`.

    Raises:
        CompressionError: the file is damaged, or of another format, version or kind; the message names what it is.
        FileNotFoundError: there is no such file.
    """
    # Read at once, since another file may be put in its place: safe_open goes back to the path for each tensor.
    whole = Path(path).read_bytes()
    try:
        tensors = from_safetensors(whole)
        header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError) as error:
        raise CompressionError(f"path: {path} is damaged or no safetensors file: {error}") from error
    found, known = (header.get("format"), header.get("version")), (FORMAT, VERSION)
    if found != known:
        raise CompressionError(
            f"path: {path} has format {found[0]!r}, version {found[1]!r}; this release reads {FORMAT!r}, {VERSION!r}"
        )
    if header.get("kind") != kind:
        raise CompressionError(f"path: {path} holds a {header.get('kind')}; a {kind} is needed")
    if header.get("sha256") != _checksum(kind, header.get("content", ""), tensors):
        raise CompressionError(f"path: {path} is damaged: its checksum does not fit its content")
    return tensors, json.loads(header["content"])


def digest(parts: Iterable[Tensor | str | bytes]) -> str:
    """Return the SHA-256, in hex, of types, shapes and values of tensors, and of texts and bytes, in order."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(f"{part.dtype} {tuple(part.shape)}".encode())
            found.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            data = part.encode() if isinstance(part, str) else part
            found.update(f"{len(data)} ".encode() + data)  # The length keeps ("ab", "c") from ("a", "bc").
    return found.hexdigest()


def _checksum(kind: str, content: str, tensors: Mapping[str, Tensor]) -> str:
    return digest([kind, content, *(part for key in sorted(tensors) for part in (key, tensors[key]))])
