"""The page of a study: its table, its pictures, and the same latents through every row; needs the extra ``report``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from compressors.common.extras import extra
from compressors.errors import CompressionError
from compressors.study.settings import STRIP

with extra("report"):
    from torch_fidelity_lsh.report.page import as_source, file_as_source, write_page

_SUFFIXES = ("", "-bits", "-ratio", "-path", "-size")


def write_study_page(
    path: Path,
    folder: Path,
    tables: Mapping[str, Sequence[tuple[str, Sequence[Sequence[str]]]]],
    samples: Iterable[tuple[str, str]],
    notes: Sequence[str],
    protocol: Mapping[str, Any],
) -> None:
    """Write the page of a study.

    Args:
        path: file to write.
        folder: the study's, which holds its pictures; those that are not there are left out.
        tables: by reference, tables of a title and lines of cells, the header first.
        samples: label of each row, and its picture relative to the folder.
        notes: what has to be known of rows.
        protocol: what led to the rows.

    Raises:
        CompressionError: a picture of the study cannot be read.
    """
    write_page(
        path,
        "study.html",
        title="What compression costs",
        blocks=[
            {
                "tables": [{"title": title, "header": lines[0], "rows": lines[1:]} for title, lines in found],
                "pictures": _pictures(folder, reference),
            }
            for reference, found in tables.items()
        ],
        samples=[
            {"name": label, "source": _strip(folder / picture)}
            for label, picture in samples
            if (folder / picture).is_file()
        ],
        notes=notes,
        protocol={name: str(value) for name, value in protocol.items()},
    )


def _pictures(folder: Path, reference: str) -> list[dict[str, str]]:
    paths = (folder / f"{reference}{suffix}.png" for suffix in _SUFFIXES)
    return [{"name": path.stem, "source": file_as_source(path)} for path in paths if path.is_file()]


def _strip(path: Path) -> str:
    """Return the first line of samples of a row's picture as the source of an image, in full."""
    try:
        with Image.open(path) as picture:
            line = picture.convert("RGB").crop((0, 0, picture.width, picture.width // STRIP))
    except OSError as error:
        raise CompressionError(f"{path} cannot be read as a picture of the study: {error}") from error
    return as_source(pil_to_tensor(line), largest=None)
