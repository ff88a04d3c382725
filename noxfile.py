"""The versions that are promised, each in an environment of its own: `nox` runs a slice of the tests in all of them."""

import nox

NEWEST = ("torch", "torchvision", "numpy")
LOWEST = ("torch==2.6.0", "torchvision==0.21.0", "numpy==1.26.4", "torch-fidelity==0.4.0")
# One file for each thing that versions have broken: calls, extraction, arrays, digits, both backends, files, imports.
SLICE = (
    "tests/test_calculate_metrics.py",
    "tests/test_feature_extractor.py",
    "tests/test_inputs.py",
    "tests/test_lsh_metrics.py",
    "tests/test_streaming.py",
    "tests/test_layout.py",
    "tests/test_compressors_quantizer.py",
    "tests/test_compressors_pruner.py",
    "tests/test_compressors_files.py",
    "tests/test_distiller.py",
)

nox.options.default_venv_backend = "venv"


@nox.session(python=["3.10", "3.12", "3.13"])
def newest(session: nox.Session) -> None:
    """Run the slice with the newest versions of everything."""
    _run(session, NEWEST)


@nox.session(python="3.10")
def lowest(session: nox.Session) -> None:
    """Run the slice with the lowest versions that pyproject.toml allows."""
    _run(session, LOWEST)


@nox.session(python="3.11")
def audit(session: nox.Session) -> None:
    """Look for known vulnerabilities of what gets installed; needs a network connection."""
    session.install("pip-audit")
    session.run("pip-audit", "--skip-editable", ".")


def _run(session: nox.Session, versions: tuple[str, ...]) -> None:
    session.install(*versions)
    session.install("--editable", ".[dev]", *versions)
    session.run("pytest", "-q", *(session.posargs or SLICE), env={"OMP_NUM_THREADS": "1"})
