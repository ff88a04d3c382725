# The two commands: `make demo` runs the main job, `make test` checks the code.
# Both set up everything they need in .venv on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test coverage docs clean

demo: .venv/ready
	$(BIN)/python examples/degraded_images.py --output output/demo/metrics
	$(BIN)/python examples/compression_study.py --output output/demo/compression

test: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2

# Apart, since it slows the tests.
coverage: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --cov --cov-report=term

docs: .venv/ready
	$(BIN)/mkdocs build

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv output
