"""Files that are written whole or not at all, and files of tensors whose every bit is checked when they are read."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

_A_DAY = 86_400.0
_FACTS_OF_FORMAT = {"format", "format_version", "digest"}


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` when the ``with`` block ends without an error, all at once.

    Readers see the old file or the new one, also beside other writers. What a killed writer has left is removed.

    Raises:
        OSError: The file cannot be written; the old one is as it was.
    """
    target = Path(path)
    _sweep(target)
    temporary = target.with_name(f"{_prefix(target)}{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}.part")
    try:
        # Opened like any file, so that it gets the permissions that the user's umask says.
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8 as :func:`whole_file` does."""
    with whole_file(path) as file:
        file.write(text.encode())


def check_writable(path: str | os.PathLike[str], argument: str, suffix: str) -> None:
    """Refuse a place where a file cannot be written, before the work whose result it is to hold.

    Args:
        path: The file.
        argument: Name of what gave the path, for error messages.
        suffix: Ending that the file must have.

    Raises:
        ValueError: The ending is another one, the path is a folder, or its folder is missing or cannot be written to.
    """
    target = Path(path)
    if target.suffix != suffix:
        raise ValueError(f'{argument}: the file must end in {suffix}; got "{target}"')
    if target.is_dir():
        raise ValueError(f'{argument}: "{target}" is a folder; name a file in it')
    folder = target.parent
    if not folder.is_dir():
        raise ValueError(f'{argument}: there is no folder "{folder}" to write "{target.name}" in')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f'{argument}: no permission to write in folder "{folder}"')


def write_tensors(
    path: str | os.PathLike[str], kind: str, version: int, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, str]
) -> None:
    """Write tensors and facts about them to a safetensors file, with a digest over all of it.

    Args:
        path: File to write.
        kind: What the file is, in words; :func:`read_tensors` asks for the same.
        version: Version of what ``tensors`` and ``facts`` mean.
        tensors: On any device.
        facts: Metadata.

    Raises:
        OSError: The file cannot be written; it names the path.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {**facts, "format": kind, "format_version": str(version)}
    content = save(on_cpu, {**header, "digest": digest_of(on_cpu, header)})
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise OSError(error.errno, f"cannot write the file: {error.strerror}", os.fspath(path)) from error


def read_tensors(
    path: str | os.PathLike[str], kind: str, version: int
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a file of :func:`write_tensors`.

    Returns:
        The tensors and the facts.

    Raises:
        ValueError: The file is damaged, of another kind or of another version.
        OSError: There is no such file, or it cannot be read.
    """
    name = os.fspath(path)
    try:
        # Read at once, since another file may be put in its place: safe_open goes back to the path for each tensor.
        content = Path(path).read_bytes()
        tensors, header = load(content), _metadata(content)
    except OSError:
        raise
    except Exception as error:  # The parser raises what it likes on damaged files.
        raise ValueError(f'"{name}" is damaged, or no safetensors file: {error}') from error
    if header.get("format") != kind:
        raise ValueError(f'"{name}" is no {kind} file')
    if header.get("format_version") != str(version):
        raise ValueError(
            f'"{name}" has format version {header.get("format_version")}, and this release reads version {version}'
        )
    if header.pop("digest", None) != digest_of(tensors, header):
        raise ValueError(f'"{name}" is damaged: its digest does not fit its contents')
    return tensors, header


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """Return what a file of :func:`write_tensors` says it is, `None` for other files and damaged ones."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format")
    except (OSError, SafetensorError, ValueError):
        return None


def check_digest(path: str | os.PathLike[str]) -> None:
    """Read a safetensors file, and raise `ValueError` if it was written by :func:`write_tensors` and is damaged since.

    One bit may make a file that is read otherwise pass for one that others wrote, whose contents nothing protects.
    """
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata() or {})
        if len(_FACTS_OF_FORMAT & header.keys()) < 2:
            return
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header.pop("digest", None) != digest_of(tensors, header):
        raise ValueError("its digest does not fit its contents")


def digest_of(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, str] | None = None) -> str:
    """Return the SHA-256 digest of names, types, shapes and values of tensors, and of facts about them."""
    digest = hashlib.sha256(json.dumps(facts or {}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        whole = tensor.detach().cpu().contiguous()
        digest.update(f"\n{name} {whole.dtype} {tuple(whole.shape)}\n".encode())
        digest.update(whole.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 digest of a file's contents."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _metadata(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return metadata


def _prefix(target: Path) -> str:
    return f".{target.name}."


def _sweep(target: Path) -> None:
    """Remove what writers of this file have left that are no more."""
    with suppress(OSError):
        for leftover in target.parent.glob(f"{_escaped(_prefix(target))}*.part"):
            if _is_abandoned(leftover):
                leftover.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _is_abandoned(leftover: Path) -> bool:
    host, pid = leftover.name.rsplit(".", 3)[0].removeprefix("."), leftover.name.rsplit(".", 3)[1]
    if host.endswith(f".{socket.gethostname()}") and pid.isdecimal() and os.name == "posix":
        return not _runs(int(pid))
    with suppress(OSError):
        return time.time() - leftover.stat().st_mtime > _A_DAY
    return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
