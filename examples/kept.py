"""Folders of results that a second run goes on with: their models are of one setting, or refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressors.common.files import write_json


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder for models of these settings; leave with a message where it holds those of others."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    if path.is_file() and json.loads(path.read_text()) != settings:
        sys.exit(f"{folder} holds models of other settings: choose another --output, or delete it")
    write_json(path, settings)
