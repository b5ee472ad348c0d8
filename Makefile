# Thin names for commands that also work without make. Each target makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
# make lowest TESTED=torch: the tested version of torch, where the lowest would be a download of gigabytes.
TESTED ?=

.PHONY: install demo test slow fuzz properties lint docs constraints lowest clean

install: .venv/.ready

.venv/.ready: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: .venv/.ready
	$(BIN)/python data_prep/demo.py

test: .venv/.ready
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not docs"

# Kills, preemptions, ranks that die, a real Slurm where there is one: minutes of waiting for processes to start.
# Then every property with more examples than `make test` draws, the same ones every time: a gate must not depend on luck.
slow: .venv/.ready
# nnU-Net's networks, which ours are compared with. Without its dependencies: one of them is pinned to a
# version that nnU-Net itself does not take, and these networks need torch only. Without it, or a network
# to fetch it from, those tests are skipped.
	-$(BIN)/python -m pip install --quiet --no-deps dynamic-network-architectures==0.4.4
	$(BIN)/python -m pytest -n auto --dist loadfile -m "slow and not docs"
	$(MAKE) properties SEEDS="1 2 3"

# Every property with new examples, for the night: a failure names its seed.
fuzz: .venv/.ready
	$(MAKE) properties SEEDS="$$(od -An -N12 -tu4 /dev/urandom)"

properties: .venv/.ready
	for seed in $(SEEDS); do \
		echo "properties with other examples: --hypothesis-profile=fresh --hypothesis-seed=$$seed"; \
		$(BIN)/python -m pytest -n auto --dist loadfile -m "hypothesis and not docs" \
			--hypothesis-profile=fresh --hypothesis-seed=$$seed || exit 1; \
	done

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The pages in docs/_build/html, out of docs/, the tables and the docstrings; then the tests that read them.
docs: .venv/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html
	$(BIN)/python -m pytest -n auto --dist loadfile -m docs

# Today's versions of everything into constraints.txt. Run make lint, test, slow and docs before you keep them.
constraints:
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet --upgrade pip
	.venv-constraints/bin/python -m pip install --quiet ".[dev,docs]"
	.venv-constraints/bin/python .ci/constraints.py > .venv-constraints/constraints.txt
	mv .venv-constraints/constraints.txt constraints.txt
	rm -rf .venv-constraints

# The fast tests with the lowest versions that pyproject.toml allows of what we depend on, in .venv-lowest.
lowest:
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --upgrade pip
	.venv-lowest/bin/python .ci/lowest.py $(TESTED) > .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/lowest.txt --editable ".[dev]"
	.venv-lowest/bin/python -m pytest -n auto --dist loadfile -m "not slow and not docs"

clean:
	rm -rf .venv .venv-lowest .venv-constraints build docs/_build demo
