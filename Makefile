# Every target is complete on a fresh clone: it makes .venv if there is none and installs what it needs.
# Inside an activated environment (venv or uv) that one is used instead.

PYTHON ?= python3
VENV ?= $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
PY := $(BIN)/python
# The index of PyTorch wheels for your hardware, from PyTorch's own installation page: make install TORCH_INDEX=<address>
TORCH_INDEX ?=
TORCH ?= torch==2.13.0
STAMPS := $(VENV)/.sjepa

# pip where the environment has it, else uv (whose environments come without pip), else pip made by Python itself
define pip_install
if $(PY) -m pip --version >/dev/null 2>&1; then $(PY) -m pip install --quiet $(1); \
elif command -v uv >/dev/null 2>&1; then uv pip install --quiet --python $(PY) $(1); \
else $(PY) -m ensurepip --upgrade >/dev/null && $(PY) -m pip install --quiet $(1); fi
endef

.PHONY: install cuda_install rocm_install demo test check bench clean

install: $(STAMPS)/install

# PyTorch first and by itself, so that the package's own requirement never pulls another build
$(STAMPS)/install: pyproject.toml | $(STAMPS)
	@echo "installing sjepa and PyTorch (CPU) into $(VENV)"
	@if ! $(PY) -c "import torch" 2>/dev/null; then $(call pip_install,"$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))); fi
	@$(call pip_install,-e .)
	@touch $@

cuda_install: | $(STAMPS)
	@echo "installing sjepa and PyTorch (CUDA) into $(VENV)"
	@$(call pip_install,torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)))
	@$(call pip_install,-e .)
	@touch $(STAMPS)/install
	@$(PY) -c "import torch; print('PyTorch', torch.__version__, '- CUDA devices:', torch.cuda.device_count())"

rocm_install: | $(STAMPS)
	@test -n "$(TORCH_INDEX)" || { echo "rocm_install: name the ROCm wheel index of PyTorch's installation page: make rocm_install TORCH_INDEX=<address>" >&2; exit 2; }
	@echo "installing sjepa and PyTorch (ROCm) into $(VENV)"
	@$(call pip_install,torch --index-url $(TORCH_INDEX))
	@$(call pip_install,-e .)
	@touch $(STAMPS)/install
	@$(PY) -c "import torch; print('PyTorch', torch.__version__, '- HIP', torch.version.hip, '- devices:', torch.cuda.device_count())"

TOOLS := -e ".[onnx,probes]"

$(STAMPS)/tools: $(STAMPS)/install
	@echo "installing what evaluation and export need"
	@$(call pip_install,$(TOOLS))
	@touch $@

$(STAMPS)/dev: $(STAMPS)/install
	@echo "installing what tests and checks need"
	@$(call pip_install,-e ".[dev]")
	@touch $@

$(STAMPS): | $(PY)
	@mkdir -p $@

$(PY):
	$(PYTHON) -m venv $(VENV)

# Test files in parallel, each process with one thread: many tests start processes of their own
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile

# Train, evaluate, export, infer, on generated speech
demo: $(STAMPS)/tools
	$(PY) -m sjepa.dataset.demo data/demo --speakers 32 --clips 16
	$(BIN)/trainsjepa -c cpu/configs/demo.yaml
	weights=$$(ls -td runs/demo/train*/ | head -n 1)weights/best.pt && \
	$(BIN)/evalsjepa -c cpu/configs/demo.yaml init_weights=$$weights && \
	$(BIN)/exportw -c cpu/configs/demo.yaml init_weights=$$weights && \
	$(BIN)/runinfer -c cpu/configs/demo.yaml

test: $(STAMPS)/dev
	$(PYTEST)

check: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow"

bench: $(STAMPS)/dev
	$(PY) -m benchmarks.startup
	$(PY) -m benchmarks.busy
	$(PY) -m benchmarks.gmm
	$(PY) -m benchmarks.scan
	$(PY) -m benchmarks.loader
	$(PY) -m benchmarks.export
	$(PY) -m benchmarks.train_step
	$(PY) -m benchmarks.memory
	$(PY) -m benchmarks.scaling

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
