"""The folders are the architecture: imports run downwards only, and the wheel holds all of it."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Rooms of each package from the bottom up. A room's files import from the same room and from lower floors only, so not
# from other rooms of the same floor. A room is a folder or a file directly in the package; each must have a place here.
FLOORS = {
    "torch_fidelity_lsh": [
        ["metric"],
        ["fidelity"],
        ["report", "watch"],
        ["streaming", "cli"],
        ["training", "pruna"],
        ["__init__", "__main__"],
    ],
    "compressors": [
        ["errors"],
        ["common"],
        ["core"],
        ["quantize", "prune", "sparse", "distil"],
        ["pipeline", "export", "layerwise", "search"],
        ["study", "__init__"],
    ],
}
# Rooms that may import from another package.
ACROSS = {("compressors", "study"): "torch_fidelity_lsh"}


def files() -> list[Path]:
    return [path for package in FLOORS for path in sorted((ROOT / package).rglob("*.py"))]


def room(path: Path) -> tuple[str, str]:
    package, name, *_ = path.relative_to(ROOT).with_suffix("").parts
    return package, name


def floor(path: Path) -> int:
    package, name = room(path)
    return next(number for number, rooms in enumerate(FLOORS[package]) if name in rooms)


def file_of_module(name: str) -> Path | None:
    for path in (ROOT / name.replace(".", "/") / "__init__.py", ROOT / (name.replace(".", "/") + ".py")):
        if path.is_file():
            return path
    return None


def imported(path: Path) -> Iterator[Path]:
    """Yield the files of both packages that a file imports, wherever in its text; relative imports count as none."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            # from package import module, or from package.module import name
            names = [
                full if file_of_module(full := f"{node.module}.{alias.name}") else node.module for alias in node.names
            ]
        else:
            continue
        yield from (file for name in names if name.split(".")[0] in FLOORS and (file := file_of_module(name)))


def violation(importer: Path, target: Path) -> str | None:
    pair = f"{importer.relative_to(ROOT)} imports {target.relative_to(ROOT)}"
    (package, here), (other_package, there) = room(importer), room(target)
    if package != other_package:
        return None if ACROSS.get((package, here)) == other_package else f"{pair}, of another package"
    if here == there or floor(target) < floor(importer):
        return None
    return f"{pair}, which is {'above it' if floor(target) > floor(importer) else 'beside it'}"


def circle(imports: dict[Path, set[Path]]) -> list[Path]:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_file_has_a_place_on_the_plan():
    planned = {(package, name) for package, floors in FLOORS.items() for names in floors for name in names}
    assert {room(path) for path in files()} <= planned


def test_imports_run_downwards():
    problems = [text for path in files() for target in imported(path) if (text := violation(path, target))]
    assert not problems, "\n".join(problems)


def test_imports_are_absolute():
    relative = [
        str(path.relative_to(ROOT))
        for path in files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative


def test_no_files_import_each_other_in_a_circle():
    # A function that runs with other globals imports from its own file.
    found = circle({path: set(imported(path)) - {path} for path in files()})
    assert not found, " imports ".join(str(path.relative_to(ROOT)) for path in reversed(found))


def test_an_upward_import_and_a_circle_are_found():
    calculate, streaming, reference = (
        ROOT / "torch_fidelity_lsh" / name for name in ("fidelity/calculate.py", "streaming.py", "metric/reference.py")
    )
    model, runner = ROOT / "compressors/core/model.py", ROOT / "compressors/study/runner.py"
    assert violation(calculate, streaming) == (
        "torch_fidelity_lsh/fidelity/calculate.py imports torch_fidelity_lsh/streaming.py, which is above it"
    )
    assert "beside it" in violation(streaming, ROOT / "torch_fidelity_lsh/cli.py")
    assert "another package" in violation(model, reference)
    assert "another package" in violation(reference, model)
    assert violation(runner, calculate) is None
    assert set(circle({calculate: {streaming}, streaming: {reference}, reference: {calculate}}))
    assert reference in imported(ROOT / "torch_fidelity_lsh/cli.py")


IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
folder = sys.argv[1]
sys.path.insert(0, folder)
for package in sys.argv[2:]:
    top = importlib.import_module(package)
    for found in pkgutil.walk_packages(top.__path__, package + "."):
        try:
            path = importlib.import_module(found.name).__file__
        except ImportError as error:  # A package that an extra brings is not installed, and the message says which.
            assert 'pip install "torch-fidelity-lsh[' in str(error), error
            path = found.module_finder.find_spec(found.name).origin
        assert pathlib.Path(path).is_relative_to(folder), path
        print(pathlib.Path(path).relative_to(folder).as_posix())
    print(pathlib.Path(top.__file__).relative_to(folder).as_posix())
"""


@pytest.fixture(scope="module")
def installed_wheel(tmp_path_factory):
    """A folder that holds what the wheel installs, built from a copy so that nothing is left in the clone."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in FLOORS:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--target", target]
    run = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, source]
    subprocess.run(run, check=True, capture_output=True)
    return target


def test_the_wheel_holds_every_module_and_each_can_be_imported(installed_wheel):
    run = subprocess.run(
        [sys.executable, "-I", "-c", IMPORT_ALL, installed_wheel, *FLOORS], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert sorted(run.stdout.split()) == sorted(path.relative_to(ROOT).as_posix() for path in files())


def test_the_wheel_says_that_it_is_typed(installed_wheel):
    assert all((installed_wheel / package / "py.typed").is_file() for package in FLOORS)
