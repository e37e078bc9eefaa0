# Everything runs in .venv, made from the exact versions in constraints.txt.
# The first Python that is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: docs demo gpu-check test test-fast test-long slow test-stores lint types imports study bench bench-data bench-blocks bench-models bench-next-item bench-scoring bench-serving bench-training clean kuberay-crds rehearsal

demo: $(READY)
	$(BIN)/python jobs/pipeline.py --config configs/demo.toml

# Tests with a cluster of their own share the cores among themselves already, so only the rest runs
# in two processes.
test: test-fast
	$(BIN)/python -m pytest -m "(ray or processes) and not long and not slow and not gpu"

# For the daily round: nothing that starts Ray, ranks, servers or a browser.
test-fast: $(READY)
	$(BIN)/python -m pytest -n 2 -m "not ray and not processes and not slow and not gpu"

# Whole jobs in processes of their own; CI runs these, too.
test-long: $(READY)
	$(BIN)/python -m pytest -m "long and not slow and not gpu"

slow: $(READY)
	$(BIN)/python -m pytest -m slow

# KubeRay's schemas, for the tests of the manifests.
KUBERAY := v1.7.0
kuberay-crds:
	mkdir -p .kuberay-crds
	for kind in rayclusters rayjobs rayservices raycronjobs; do \
	  curl --fail --silent --show-error --location --output .kuberay-crds/ray.io_$$kind.yaml \
	    https://raw.githubusercontent.com/ray-project/kuberay/$(KUBERAY)/helm-chart/kuberay-operator/crds/ray.io_$$kind.yaml; \
	done
	@echo 'export DISTRIB_KUBERAY_CRDS=$(CURDIR)/.kuberay-crds'

# A head and workers on hosts of their own, in network namespaces, as Kubernetes would run them; root.
rehearsal: $(READY)
	$(BIN)/python -m pytest -m slow -s tests/k8s/test_rehearsal.py

# Servers of others, installed apart: their requirements are their own.
test-stores: $(READY)
	$(PYTHON) -m venv .stores
	.stores/bin/pip install --quiet swift==2.38.3 pyeclib==1.8.0 gcp-storage-emulator==2026.7.19
	npm install --silent --prefix .stores azurite@3.35.0
	STORES_PYTHON=.stores/bin/python AZURITE=.stores/node_modules/.bin/azurite-blob \
	  $(BIN)/python -m pytest -m slow tests/test_stores.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/pydoclint distrib

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

# The site, into build/site.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --site-dir build/site

# A study of configs/studies, small: make study STUDY=demo; with SIZE=full as it is meant.
STUDY ?= demo
SIZE ?= small
study: $(READY)
	$(BIN)/python jobs/study.py --config configs/studies/$(STUDY).toml --set 'size="$(SIZE)"'

# Is the GPU of this machine right, and fast? Small, on the CPU, where there is none.
gpu-check: $(READY)
	$(BIN)/python -m tests.gpu.check

bench: $(READY)
	$(BIN)/python -m tests.benchmarks.throughput

bench-data: $(READY)
	$(BIN)/python -m tests.benchmarks.preparation

bench-blocks: $(READY)
	$(BIN)/python -m tests.benchmarks.blocks

bench-models: $(READY)
	$(BIN)/python -m tests.benchmarks.models

bench-training: $(READY) .recbole/.ready
	$(BIN)/python -m tests.benchmarks.training --recbole .recbole/bin/python

bench-next-item: $(READY) .recbole/.ready
	$(BIN)/python -m tests.benchmarks.next_item --recbole .recbole/bin/python

bench-scoring: $(READY) .recbole/.ready
	$(BIN)/pip install --quiet --constraint constraints.txt implicit==0.7.3
	$(BIN)/python -m tests.benchmarks.scoring --recbole .recbole/bin/python

bench-serving: $(READY)
	$(BIN)/python -m tests.benchmarks.serving

# RecBole apart, with what it was made for: NumPy 1, an old Ray, setuptools with pkg_resources.
.recbole/.ready:
	$(PYTHON) -m venv .recbole
	.recbole/bin/pip install --quiet torch==2.13.0 recbole==1.2.1 numpy==1.26.4 scipy==1.11.4 \
	  pandas==2.1.4 setuptools==80.10.2
	touch $@

# torch first: DeepSpeed's build and its requirements must find it, or pip fetches a CUDA build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade --constraint constraints.txt pip setuptools wheel
	$(BIN)/pip install --quiet --constraint constraints.txt torch numpy
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation deepspeed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[ray,deepspeed,s3]'
	$(BIN)/pip install --quiet --constraint constraints.txt --group dev
	touch $@

clean:
	rm -rf $(VENV) runs
