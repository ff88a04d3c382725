"""What all pages are made with: templates that escape whatever users name their files, and pictures as text."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.functional import to_pil_image

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as error:
    raise ImportError(f'A report needs jinja2 ({error}): pip install "torch-fidelity-lsh[report]"') from error

from torch_fidelity_lsh.metric.files import write_text

SUFFIX = ".html"
LARGEST = 256
"""Pixels of the longer side of a picture; larger ones are made smaller."""


def write_page(path: str | os.PathLike[str], template: str, **content: Any) -> None:
    """Write a page, whole or not at all.

    Args:
        path: File to write, ending in ``.html``.
        template: Name of a template in this folder.
        **content: What the template shows; text in it is escaped.

    Raises:
        OSError: The file cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("torch_fidelity_lsh.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(path, environment.get_template(template).render(**content))


def as_source(image: torch.Tensor, largest: int | None = LARGEST) -> str:
    """Return an image, uint8 1 or 3 x H x W, as the source of an ``img`` element, made smaller unless `None`."""
    picture = to_pil_image(image)
    if largest is not None:
        picture.thumbnail((largest, largest))
    content = io.BytesIO()
    picture.save(content, "PNG")
    return _source(content.getvalue())


def file_as_source(path: Path) -> str:
    """Return a PNG file as the source of an ``img`` element."""
    return _source(path.read_bytes())


def _source(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
