# Thin names for commands that also work without make. Each target makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test slow fuzz properties lint clean

install: .venv/.ready

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: .venv/.ready
	$(BIN)/python data_prep/demo.py

test: .venv/.ready
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

# Kills, preemptions, ranks that die, a real Slurm where there is one: minutes of waiting for processes to start.
# Then every property with more examples than `make test` draws, the same ones every time: a gate must not depend on luck.
slow: .venv/.ready
# nnU-Net's networks, which ours are compared with. Without its dependencies: one of them is pinned to a
# version that nnU-Net itself does not take, and these networks need torch only. Without it, or a network
# to fetch it from, those tests are skipped.
	-$(BIN)/python -m pip install --quiet --no-deps dynamic-network-architectures==0.4.4
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow
	$(MAKE) properties SEEDS="1 2 3"

# Every property with new examples, for the night: a failure names its seed.
fuzz: .venv/.ready
	$(MAKE) properties SEEDS="$$(od -An -N12 -tu4 /dev/urandom)"

properties: .venv/.ready
	for seed in $(SEEDS); do \
		echo "properties with other examples: --hypothesis-profile=fresh --hypothesis-seed=$$seed"; \
		$(BIN)/python -m pytest -n auto --dist loadfile -m hypothesis \
			--hypothesis-profile=fresh --hypothesis-seed=$$seed || exit 1; \
	done

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf .venv demo
