"""What does compression cost? One table: sizes, quality and diversity of a generator under a list of compressors.

>>> from compressors import Quantizer
>>> from compressors.study import StudySettings, run_study
>>> def draw(n, random):
...     return (torch.randn(n, 64, generator=random),)
>>> settings = StudySettings(output_range=(-1, 1), references=("real", "teacher"))
>>> table = run_study(generator, draw, [Quantizer(8), Quantizer(4)], images, "study", settings)  # doctest: +SKIP
"""

from compressors.study.measure import extract_features, measure_generator
from compressors.study.runner import run_study
from compressors.study.seeded import PipelineGenerator, SeededGenerator
from compressors.study.settings import StudySettings
from compressors.study.table import Row, Table

__all__ = [
    "PipelineGenerator",
    "Row",
    "SeededGenerator",
    "StudySettings",
    "Table",
    "extract_features",
    "measure_generator",
    "run_study",
]
