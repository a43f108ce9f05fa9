# `make demo` and `make test` need only Python 3.11.5 or newer and make: each sets up .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-slow lint bench bench-trainability bench-trainability-quick trainability zoo paper docs release-check lock clean
help:
	@echo "make demo       train a deep network from PyTorch's initialization and from LSUV; writes goodinit-demo.png"
	@echo "make test       linter, type checker and test-suite (a few minutes)"
	@echo "make test-slow  the longer checks"
	@echo "make release-check  builds wheel and sdist, and runs tests against the installed wheel (a minute)"
	@echo "make bench      benchmarks/bench_lsuv.py: side by side with the peers"
	@echo "make bench-trainability        does it help: small real tasks from every initialization (hours; goes on where it was)"
	@echo "make bench-trainability-quick  a subset of it, in five minutes"
	@echo "make paper      docs/paper.md: the paper's tables and figures, from the committed rows"
	@echo "make docs       the documentation as a site, in build/site"
	@echo "make zoo        initializes every model of the zoo; writes docs/zoo.md (a few minutes)"

demo: $(READY)
	$(BIN)/goodinit demo

test: lint
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist worksteal

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# Both at once: each takes half a minute on one core.
	$(BIN)/mypy & sources=$$!; $(BIN)/mypy --config-file tests/mypy.ini --cache-dir .mypy_cache/tests; tests=$$?; wait $$sources && exit $$tests

bench: $(READY)
	$(BIN)/python benchmarks/bench_lsuv.py

# MNIST and CIFAR-10: set GOODINIT_DATA_DIR to a folder that holds mnist/ and cifar10/ as parquet files. The subset needs neither.
TRAINABILITY := PYTHONPATH=benchmarks OMP_NUM_THREADS=1 $(BIN)/python -m trainability
bench-trainability: $(READY)
	$(TRAINABILITY) run
	$(TRAINABILITY) page

bench-trainability-quick: $(READY)
	$(TRAINABILITY) run --quick
	$(TRAINABILITY) page

# docs/trainability.md and docs/beyond-unit-variance.md, from the rows.
trainability: $(READY)
	$(TRAINABILITY) theory
	$(TRAINABILITY) page

# One thread: the models are small, and the row says how many there were.
zoo: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/zoo_table.py

# The rows are made by `goodinit reproduce …`, see docs/paper.md.
paper: $(READY)
	$(BIN)/goodinit reproduce report --results benchmarks/results/paper --out docs/paper.md

# The site, in build/site. Its theme advertises its successor unless told not to.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

# The stamp is written last: an interrupted set-up is run again.
$(READY): Makefile pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11, 5))" || { echo "The pinned dependencies need Python 3.11.5 or newer (goodinit itself: 3.10); name one with: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "This Python cannot make virtual environments. On Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# The zoo's vision models, in a folder that only it looks into: without its compiled operators, which do not load beside
	@# this build of torch, an installed torchvision would break `import transformers` everywhere else. By the folder's name
	@# Hypothesis knows that it is nobody's own code, which it would read for constants, for seconds, at some test's expense.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --target $(VENV)/vision/site-packages --upgrade timm torchvision
	@touch $@

# In build/release: the wheel, the sdist, and an environment that the wheel is installed in.
release-check: $(READY)
	bash .ci/check-release $(BIN)/python

# New pins: everything that the development environment holds now.
lock: $(READY)
	{ $(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools | sed 's/+cpu$$//'; \
	  grep -E '^(timm|torchvision)==' constraints.txt; } | sort -f > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV)
