# Every target is complete on a fresh clone: it makes .venv if there is none and installs what it needs.
# Inside an activated environment (venv or uv) that one is used instead.

PYTHON ?= python3
VENV ?= $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
PY := $(BIN)/python
# Which PyTorch: scripts/install_torch says what the two variables mean. TORCH_INDEX=<address> is that of PyTorch's
# installation page for your hardware, needed where there is no uv.
TORCH_INDEX ?=
TORCH_BACKEND ?=
TORCH ?= torch==2.13.0
STAMPS := $(VENV)/.sjepa
TORCH_BUILD = TORCH_INDEX="$(TORCH_INDEX)" TORCH_BACKEND="$(TORCH_BACKEND)" scripts/install_torch

PIP_INSTALL = scripts/pip $(PY) install

.PHONY: install cuda_install rocm_install demo tokenizer_demo test check bench gpu_check docs lock clean

install: | $(STAMPS)
	@$(TORCH_BUILD) cpu $(PY) "$(TORCH)"
	@$(MAKE) --no-print-directory $(STAMPS)/install

cuda_install: | $(STAMPS)
	@$(TORCH_BUILD) cuda $(PY) torch
	@$(MAKE) --no-print-directory $(STAMPS)/install

rocm_install: | $(STAMPS)
	@$(TORCH_BUILD) rocm $(PY) torch
	@$(MAKE) --no-print-directory $(STAMPS)/install

# PyTorch first and by itself, so that the package's own requirement never pulls another build
$(STAMPS)/install: pyproject.toml | $(STAMPS)
	@echo "installing sjepa into $(VENV)"
	@$(PY) -c "import torch" 2>/dev/null || $(TORCH_BUILD) cpu $(PY) "$(TORCH)"
	@$(PIP_INSTALL) -e .
	@touch $@

$(STAMPS)/tools: $(STAMPS)/install
	@echo "installing what evaluation and export need"
	@$(PIP_INSTALL) -e ".[onnx,probes]"
	@touch $@

$(STAMPS)/dev: $(STAMPS)/install
	@echo "installing what tests and checks need"
	@$(PIP_INSTALL) -e ".[dev]"
	@touch $@

$(STAMPS)/docs: $(STAMPS)/install
	@echo "installing what the documentation needs"
	@$(PIP_INSTALL) -e ".[docs]"
	@touch $@

$(STAMPS)/deepspeed: $(STAMPS)/install
	@echo "installing DeepSpeed, which its tests need"
	@$(PIP_INSTALL) -e ".[deepspeed]"
	@touch $@

$(STAMPS): | $(PY)
	@mkdir -p $@

$(PY):
	$(PYTHON) -m venv $(VENV)

# Test files in parallel, each process with one thread, the longest files first (tests/conftest.py)
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Train, evaluate, export, infer, on generated speech
demo: $(STAMPS)/tools
	$(PY) -m sjepa.dataset.demo data/demo --speakers 32 --clips 16
	$(BIN)/trainsjepa -c cpu/configs/demo.yaml
	weights=$$(ls -td runs/demo/train*/ | head -n 1)weights/best.pt && \
	$(BIN)/evalsjepa -c cpu/configs/demo.yaml init_weights=$$weights && \
	$(BIN)/exportw -c cpu/configs/demo.yaml init_weights=$$weights && \
	$(BIN)/runinfer -c cpu/configs/demo.yaml

# Both stages on generated speech, then speech to tokens and back
DEMO_TOKENIZER = run_name=tok_demo dataset.train_path=data/demo/train.zip dataset.test_path=data/demo/test.zip model.size=smoke

tokenizer_demo: $(STAMPS)/install
	$(PY) -m sjepa.dataset.demo data/demo --speakers 32 --clips 16
	rm -rf runs/tok_demo
	$(BIN)/traintok -c cpu/configs/tok_jepa.yaml $(DEMO_TOKENIZER) train.epochs=3 train.batch_size=8 train.max_batch_seconds=16
	$(BIN)/traintok -c cpu/configs/tok_decoder.yaml $(DEMO_TOKENIZER) train.epochs=8 \
		decoder.gan_weight=0.1 decoder.disc_start_step=336 decoder.sample_every=200
	$(BIN)/evaltok -c cpu/configs/tok_eval.yaml run_name=tok_demo weights=runs/tok_demo/train2/weights/best.pt \
		dataset.test_path=data/demo/test.zip
	$(BIN)/runtok encode data/demo/test.zip --weights runs/tok_demo/train2/weights/best.pt --out runs/tok_demo/tokens
	$(BIN)/runtok stats runs/tok_demo/tokens/*.npz
	$(BIN)/runtok decode $$(ls runs/tok_demo/tokens/*.npz | head -1) --weights runs/tok_demo/train2/weights/best.pt \
		--out runs/tok_demo/decoded.wav

test: $(STAMPS)/dev $(STAMPS)/deepspeed
	$(PYTEST)

check: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow"

# Each by itself: python -m benchmarks.NAME, without --quick for the figures of the documents
BENCHMARKS = startup busy gmm scan loader export train_step where memory scaling

bench: $(STAMPS)/dev
	for name in $(BENCHMARKS); do echo && echo "$$name" && $(PY) -m benchmarks.$$name --quick || exit 1; done

# On a machine with a CUDA device (make cuda_install first), 8 minutes at most; the last line is the report
gpu_check: $(STAMPS)/dev
	$(PY) -m benchmarks.gpu_check

# Documentation with the reference of the Python API, to site/; nothing is downloaded
docs: $(STAMPS)/docs
	$(PY) -m scripts.keys_page
	$(BIN)/mkdocs build --strict

# Versions of everything but PyTorch's own build, for developers: scripts/pip $(PY) install -r requirements-dev.lock
lock:
	echo "$(TORCH)" | uv pip compile --quiet --universal --python-version 3.10 --no-annotate --no-header \
		--extra dev --extra deepspeed --constraint - pyproject.toml | grep -Ev '^(torch|triton)==|^(nvidia|cuda)-' > requirements-dev.lock

clean:
	rm -rf build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
