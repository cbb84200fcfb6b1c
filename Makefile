# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets up what it needs.

PYTHON ?= python3.11
PYTHON := $(shell command -v $(PYTHON) || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
REQUIREMENTS := $(if $(filter-out 0,$(GPU)),requirements.txt,requirements-cpu.txt)
CODE := orpheus data tests benchmarks examples orpheus_sft_unsloth.py inference.py setup.py

.PHONY: help setup setup-engines demo serve evaluate test test-all test-engines test-real smoke bench check format clean distclean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready  ## a virtual environment with what the programs need

setup-engines: $(VENV)/.ready-engines  ## llama.cpp, built from source once (6 to 9 minutes on 2 cores)

demo: $(VENV)/.ready  ## hear the embedded voice, train a LoRA on a new one, and hear it (CPU, no download)
	@echo "first the base as it is:"
	$(BIN)/python inference.py --no-adapter --preset tiny --voice tara --seed 3 --out generated_audio/base --overwrite \
		--transcribe auto "Good morning, how are you today? I am very happy to see you."
	@echo
	@echo "then a new voice, from the recordings in data/corpus:"
	$(BIN)/python orpheus_sft_unsloth.py --preset tiny --resume --overwrite-samples
	@echo
	@echo "listen to      generated_audio/output_0.wav  output_1.wav  output_2.wav"
	@echo "report         lora_model/report.html: the samples beside the recordings, the curves, what was left out"
	@echo "speak          $(BIN)/orpheus speak \"Hey there, <giggles> how are you?\""

serve: $(VENV)/.ready  ## serve the embedded voice on http://127.0.0.1:8000: OpenAI's speech API and a web page
	$(BIN)/python -m orpheus serve --no-adapter --preset tiny

evaluate: $(VENV)/.ready-dev  ## measure the embedded base on its test clips (CPU, no download)
	$(BIN)/python -m orpheus evaluate --preset tiny

# A worker process for each core, and one thread in each: more threads than cores only wait for each other.
CORES := $(shell getconf _NPROCESSORS_ONLN)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist loadfile

test: $(VENV)/.ready-dev  ## run the tests (no network, no GPU needed)
	$(PYTEST)

test-all: test  ## run the tests and the slow ones: whole trainings, several processes
	$(PYTEST) -m "slow and not engines and not real"

test-real: $(VENV)/.ready-dev  ## fetch real recordings (Debian packages) and run the tests that need them (half an hour)
	$(BIN)/python -m tests.support.real_recordings
	$(PYTEST) -m real

test-engines: $(VENV)/.ready-engines  ## run the tests that need llama.cpp (sets it up first)
	$(BIN)/python -m pytest -m engines

smoke: $(VENV)/.ready  ## try every step once, each in a process of its own (tiny models; on a GPU: the published size)
	$(BIN)/python benchmarks/gpu_smoke.py $(if $(filter-out 0,$(GPU)),,--device cpu --size tiny --out .cache/gpu_smoke_cpu.json)

# vLLM wants versions of its own, so it has an environment of its own (3.5 GB). Not part of .ci/run.
VENV_VLLM := .venv-vllm

.PHONY: test-vllm

test-vllm: $(VENV_VLLM)/.ready  ## the same ids from vLLM: its server, and in process with an adapter (10 minutes on a CPU)
	HF_HUB_OFFLINE=1 $(VENV_VLLM)/bin/python -m pytest -m vllm -s tests/engines/test_remote_servers.py

$(VENV_VLLM)/.ready: requirements-vllm.txt
	test -x $(VENV_VLLM)/bin/python || $(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-vllm.txt
	$(VENV_VLLM)/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec  # broken beside a CPU torch
	touch $@

# Unsloth's own code, with a stand-in for the GPU: an environment of its own (3.5 GB), not part of .ci/run. Torch first, and
# Unsloth without what it asks for: torchvision and xformers want CUDA builds.
VENV_UNSLOTH := .venv-unsloth
UNSLOTH := unsloth unsloth_zoo triton==3.9.0 torchao==0.18.0 cut_cross_entropy==25.1.1

.PHONY: test-unsloth

test-unsloth: $(VENV_UNSLOTH)/.ready  ## train through Unsloth's own code, the GPU replaced (5 minutes)
	$(VENV_UNSLOTH)/bin/python -m pytest -m unsloth -s tests/model/test_unsloth.py

$(VENV_UNSLOTH)/.ready: requirements.txt requirements-unsloth.txt constraints.txt
	test -x $(VENV_UNSLOTH)/bin/python || $(PYTHON) -m venv $(VENV_UNSLOTH)
	$(VENV_UNSLOTH)/bin/python -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	grep -vE '^(unsloth|unsloth_zoo|torch|torchaudio)\b' requirements.txt > $(VENV_UNSLOTH)/without.txt
	$(VENV_UNSLOTH)/bin/python -m pip install --quiet --disable-pip-version-check -r $(VENV_UNSLOTH)/without.txt \
	    -r requirements-unsloth.txt -c constraints.txt
	$(VENV_UNSLOTH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(UNSLOTH) -c constraints.txt
	touch $@

bench: $(VENV)/.ready  ## measure what a CPU can do: preparing, streaming, training, generating (a few minutes)
	$(BIN)/python -m orpheus bench prepare --size mid --device cpu
	$(BIN)/python -m orpheus bench stream --size mid --device cpu
	$(BIN)/python -m orpheus bench train --size tiny --device cpu
	$(BIN)/python -m orpheus bench generate --size tiny --device cpu

check: $(VENV)/.ready-dev  ## format, lint, types, the rooms' contract
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

format: $(VENV)/.ready-dev  ## put the code in the project's format
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

clean:  ## remove the environment and caches; trained voices and spoken audio stay
	rm -rf $(VENV) .cache .pytest_cache .hypothesis .mypy_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

distclean:  ## clean, and remove lora_model/ and generated_audio/ too (asks first)
	@git clean -ndX lora_model generated_audio
	@printf 'Delete these trained voices and recordings for good? Type yes: '; read answer; test "$$answer" = yes
	git clean -fdqX lora_model generated_audio
	@$(MAKE) --no-print-directory clean

$(VENV)/.ready: $(REQUIREMENTS) constraints.txt pyproject.toml setup.py
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is too old: Python 3.11 or newer is needed"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS) -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .  # the command `orpheus`
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps Resemblyzer -c constraints.txt
	$(BIN)/python -m orpheus.hearing.metrics  # compiled once here: two processes at a time spoil each other's code
	touch $@

# Only the library, for this processor: no tools, no tests, no multimodal part. A GPU: CMAKE_ARGS="-DGGML_CUDA=ON" make ...
LLAMA_CMAKE := -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF
$(VENV)/.ready-engines: $(VENV)/.ready-dev requirements-engines.txt constraints.txt
	CMAKE_ARGS="$(LLAMA_CMAKE) $(CMAKE_ARGS)" CMAKE_BUILD_PARALLEL_LEVEL=$${CMAKE_BUILD_PARALLEL_LEVEL:-2} \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-engines.txt -c constraints.txt
	touch $@
