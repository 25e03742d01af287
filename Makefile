HOST ?= 127.0.0.1
PORT ?= 8000
VENV ?= .venv
# The first Python that is new enough; name another with `make PYTHON=...`.
PYTHON ?= $(shell for each in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && break; done)

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

# The environment of `test-clients`.
CLIENTS ?= .venv-clients

# Each needs about 2 GiB of memory.
TEST_PROCESSES ?= 2

# How long `soak` runs.
SECONDS ?= 3600

# Where `gpu-check` writes its report.
REPORT ?= gpu_check.md

.PHONY: serve test test-clients test-tokenisers test-ray lint bench gpu-check check-kernels release-check test-operations observe soak docs clean

serve: $(VENV)/serve.stamp
	@exec $(VENV)/bin/thinbridge serve --host '$(HOST)' --port '$(PORT)'

test: lint
	@$(VENV)/bin/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

# Starts Ray clusters on this machine: some minutes, 2 GiB.
test-ray: $(VENV)/ray.stamp
	@$(VENV)/bin/python -m pytest -m ray tests/deploy/ray

lint: $(VENV)/dev.stamp
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

# Drives a server with the clients that people use, in an environment of their own. Needs curl, Node and npm.
test-clients: $(VENV)/dev.stamp $(CLIENTS)/clients.stamp
	@CLIENTS='$(CLIENTS)' $(VENV)/bin/python -m pytest -m clients tests/clients

# Published tokenisers against their own packages, which go into the environment.
test-tokenisers: $(VENV)/tokenisers.stamp
	@$(VENV)/bin/python -m pytest -m tokenisers tests/tokenisers

# Measures on this machine and writes loadtest/results; nothing else should run beside it.
bench: $(VENV)/bench.stamp
	@$(VENV)/bin/python -m loadtest.bench

# Compiles every kernel for every architecture, a sample of which is part of `test`, and holds all to the baseline; needs no GPU.
check-kernels: $(VENV)/dev.stamp
	@$(VENV)/bin/python -m kernels.compile_checks

# Needs a GPU: builds plans, runs the tests that need one, measures, and writes one report.
gpu-check: $(VENV)/gpu.stamp
	@$(VENV)/bin/python -m export.gpu_bench --out '$(REPORT)'

# Real Prometheus on real servers; needs Debian's package `prometheus`. A test that lacks its program is skipped and says so.
test-operations: $(VENV)/operations.stamp
	@$(VENV)/bin/python -m pytest -m operations tests/operations

# Every query of the dashboards and alerts during a load run on the default model; writes loadtest/results/observe.md.
observe: $(VENV)/operations.stamp
	@$(VENV)/bin/python -m deploy.observe

# Every kind of client while faults are injected, for an hour: make soak SECONDS=300 for five minutes. Writes loadtest/results/soak.md.
soak: $(VENV)/operations.stamp
	@$(VENV)/bin/python -m loadtest.soak --seconds '$(SECONDS)'

# Builds the sdist and the wheel, installs the wheel in an empty environment, and serves and transcribes from there.
release-check: $(VENV)/release.stamp
	@$(VENV)/bin/python -m deploy.release_check

# The pages of docs/ as a site in build/site, every link of which is checked.
docs: $(VENV)/docs.stamp
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet --strict
	@$(VENV)/bin/python -m deploy.site.links build/site

clean:
	rm -rf $(VENV) $(CLIENTS) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than what it was installed from, so nothing is installed twice and a changed pyproject.toml is.
$(VENV)/serve.stamp: pyproject.toml constraints.txt $(VENV)/created.stamp
	$(PIP) install --quiet -c constraints.txt -e .
	@rm -f $(VENV)/gpu.stamp
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt $(VENV)/created.stamp
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@rm -f $(VENV)/gpu.stamp
	@touch $(VENV)/serve.stamp $@

$(VENV)/ray.stamp: pyproject.toml constraints.txt $(VENV)/created.stamp
	$(PIP) install --quiet -c constraints.txt -e '.[ray,dev]'
	@rm -f $(VENV)/gpu.stamp
	@touch $(VENV)/serve.stamp $(VENV)/dev.stamp $@

$(VENV)/bench.stamp: pyproject.toml constraints.txt $(VENV)/created.stamp
	$(PIP) install --quiet -c constraints.txt -e '.[bench]'
	@rm -f $(VENV)/gpu.stamp
	@touch $(VENV)/serve.stamp $@

$(VENV)/operations.stamp: pyproject.toml constraints.txt $(VENV)/created.stamp
	$(PIP) install --quiet -c constraints.txt -e '.[dev,operations]'
	@rm -f $(VENV)/gpu.stamp
	@touch $(VENV)/serve.stamp $(VENV)/dev.stamp $@

$(VENV)/tokenisers.stamp: pyproject.toml constraints.txt $(VENV)/created.stamp
	$(PIP) install --quiet -c constraints.txt -e '.[dev,tokenisers]'
	@rm -f $(VENV)/gpu.stamp
	@touch $(VENV)/serve.stamp $(VENV)/dev.stamp $@

$(VENV)/release.stamp: pyproject.toml constraints.txt $(VENV)/created.stamp
	$(PIP) install --quiet -c constraints.txt -e '.[release]'
	@rm -f $(VENV)/gpu.stamp
	@touch $(VENV)/serve.stamp $@

$(VENV)/docs.stamp: pyproject.toml constraints.txt $(VENV)/created.stamp
	$(PIP) install --quiet -c constraints.txt -e '.[docs]'
	@rm -f $(VENV)/gpu.stamp
	@touch $(VENV)/serve.stamp $@

$(CLIENTS)/clients.stamp: tests/clients/requirements.txt
	@test -n '$(PYTHON)' || { echo 'Thinbridge needs Python 3.11 or newer, and none was found; name one: make PYTHON=/path/to/python'; exit 1; }
	$(PYTHON) -m venv --clear '$(CLIENTS)'
	'$(CLIENTS)/bin/python' -m pip --disable-pip-version-check install --quiet --no-deps -r tests/clients/requirements.txt
	npm install --silent --no-audit --no-fund --prefix '$(CLIENTS)' openai@6.49.0
	@touch $@

# The two ONNX Runtimes unpack into one folder, and pip does not know that they conflict: both go, and the GPU's comes back.
$(VENV)/gpu.stamp: pyproject.toml constraints.txt $(VENV)/created.stamp
	$(PIP) install --quiet -c constraints.txt -e '.[gpu,dev]'
	$(PIP) uninstall --quiet -y onnxruntime onnxruntime-gpu
	$(PIP) install --quiet --no-deps -c constraints.txt onnxruntime-gpu
	@touch $(VENV)/serve.stamp $(VENV)/dev.stamp $@

$(VENV)/created.stamp:
	@test -n '$(PYTHON)' || { echo 'Thinbridge needs Python 3.11 or newer, and none was found; name one: make PYTHON=/path/to/python'; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@
