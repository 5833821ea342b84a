# `make demo` and `make test` install what they need into .venv by themselves; a second run starts at once.
# PYTHON may name another interpreter, 3.11 or 3.12.
PYTHON ?= $(shell for name in python3 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
# Many sit behind a proxy that inspects TLS: trust the system's certificates, as pip and curl do.
export UV_SYSTEM_CERTS ?= 1
export UV_NATIVE_TLS ?= true

.PHONY: install demo test lint fuzz test-gpu reference parity bench bench-gpu clean
install: $(STAMP)

$(STAMP): pyproject.toml uv.lock
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 on PATH; set PYTHON=/path/to/python" >&2; exit 2; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: .venv has an older Python: make clean, then again" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv sync --quiet --locked --inexact --python $(BIN)/python
	touch $@

demo: $(STAMP)
	$(BIN)/python -m scripts.demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

# FUZZ says how much and of which seed, e.g. FUZZ="--files 5000 --seed 7 --keep out/fuzz".
FUZZ ?= --seconds 60
fuzz: $(STAMP)
	$(BIN)/python -m scripts.fuzz $(FUZZ)

test-gpu: $(STAMP)
	FAIL_WITHOUT_CUDA=1 $(BIN)/python -m pytest -m gpu

reference: $(STAMP)
	$(BIN)/python -m scripts.reference.page
	$(BIN)/python -m scripts.reference.codecs
	$(BIN)/python -m scripts.reference.networks

parity: $(STAMP)
	$(BIN)/python -m scripts.parity --write

# Figures are of this machine and this minute: run it on a quiet one. BENCH adds flags, e.g. BENCH="--task detection".
BENCH_STAMP := .venv/.installed-bench
$(BENCH_STAMP): $(STAMP)
	$(BIN)/uv sync --quiet --locked --inexact --group bench --python $(BIN)/python
	touch $@

bench: $(BENCH_STAMP)
	mkdir -p out
	$(BIN)/python -m scripts.bench --peers --clients 1 4 --duration 15 --json out/bench.json --plot out/bench.png $(BENCH)

bench-gpu: $(BENCH_STAMP)
	mkdir -p out
	$(BIN)/python -m scripts.bench --device cuda --peers --clients 1 4 16 --json out/bench-gpu.json \
		--plot out/bench-gpu.png $(BENCH)

clean:
	rm -rf .venv out .mypy_cache .ruff_cache .pytest_cache
