"""Search for a student of a given cost: what AutoGAN-Distiller does, for anyone's generator.

>>> from compressors.search import tiny
>>> space = tiny()
>>> space.min_macs((32, 32)), space.max_macs((32, 32))
(200704, 6340608)

Where to add what: an operator in `operators.py` (or `register_operator`), a strategy in `strategies.py`, a search space
in `factories.py` (or a `SearchSpace` of your own layers).
"""

from compressors.search.factories import cyclegan, esrgan, tiny
from compressors.search.operators import Layer, Slot, register_operator
from compressors.search.report import save_report, search_report
from compressors.search.space import SearchSpace
from compressors.search.stage import ArchitectureSearch, search_student
from compressors.search.student import Skip
from compressors.search.supernet import Supernet
from compressors.search.widths import WidthSearch, search_widths

__all__ = [
    "ArchitectureSearch",
    "Layer",
    "SearchSpace",
    "Skip",
    "Slot",
    "Supernet",
    "WidthSearch",
    "cyclegan",
    "esrgan",
    "register_operator",
    "save_report",
    "search_report",
    "search_student",
    "search_widths",
    "tiny",
]
