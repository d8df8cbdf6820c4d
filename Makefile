# What a developer runs; `make help` lists it. Needs make and Python 3.11 or newer, nothing else.

READY := .venv/.ready
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --quiet --disable-pip-version-check
PIDGIN := $(PY) -m pidgin_cli
AIMOCK := @copilotkit/aimock@1.43.0
MOCK := node_modules/.aimock-1.43.0
# Tools are called as modules: the start lines of installed scripts cannot hold a path with a blank in it.

# Without compiled modules every process of tests, demo and bench would compile the whole package.
unexport PYTHONDONTWRITEBYTECODE

quoted = '$(subst ','\'',$(1))'

# PYTHON=… makes .venv with another interpreter; without it the one .venv was made with stays.
ifeq ($(origin PYTHON),undefined)
  PYTHON := $(or $(shell sed -n 2p $(READY) 2>/dev/null),python3)
endif

# A checkout that was moved or copied, or another PYTHON, needs a new .venv.
ifeq ($(shell printf '%s\n' "$$(pwd)" $(call quoted,$(PYTHON)) | cmp -s - $(READY) && echo fresh),)
  .PHONY: $(READY)
  CLEAR := $(if $(wildcard $(READY)),--clear)
endif

.PHONY: help demo test check bench docs pictures lock clean
.DEFAULT_GOAL := help

help: ## list what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

$(READY): requirements-dev.txt pyproject.toml
	@$(call quoted,$(PYTHON)) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Pidgin needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo 'Setting up .venv'
	@$(call quoted,$(PYTHON)) -m venv $(CLEAR) .venv
	@$(PIP) --require-hashes -r requirements-dev.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@printf '%s\n' "$$(pwd)" $(call quoted,$(PYTHON)) > $@

demo: $(READY) ## a conversation and a small experiment on the built-in model, and what comes of them
	@printf '$$ pidgin chat -a local:test -b local:test -t 2 …\n' && \
	  $(PIDGIN) chat -a 'local:test?words=25&chunk_ms=15&name=Wren' -b 'local:test?words=25&chunk_ms=15&echo=0.4&name=Finch' \
	  --choose-names -t 2 --seed 7 -n demo -p 'What would you like to find out?' -o pidgin_output
	@printf '\n$$ tail -n 1 …_events.jsonl\n' && tail -n 1 "$$(ls -t pidgin_output/experiments/*/conv_*_events.jsonl | head -n 1)"
	@printf '\n$$ pidgin run demo.yaml --dry-run\n' && $(PIDGIN) run docs/demo.yaml --dry-run -o pidgin_output | sed '/^order/,$$d'
	@name="demo $$(date +%s)" && printf '$$ pidgin run demo.yaml\n' && \
	  $(PIDGIN) run docs/demo.yaml -n "$$name" -o pidgin_output && \
	  id=$$($(PIDGIN) list --json -o pidgin_output | $(PY) -c 'import json, sys; print(json.load(sys.stdin)[0]["experiment_id"])') && \
	  printf '\n$$ pidgin show %s\n' "$$id" && $(PIDGIN) show "$$id" -o pidgin_output | sed '/^conversation/,$$d' && \
	  query="SELECT arm, state, count(*) AS messages FROM message_metrics m JOIN conversations c USING (conversation_id) \
	WHERE c.experiment_id = '$$id' GROUP BY ALL ORDER BY ALL" && \
	  printf '$$ pidgin query "%s"\n' "$$query" && $(PIDGIN) query "$$query" -o pidgin_output && \
	  printf '\n$$ pidgin compare %s --by b.model --metric convergence --metric first_passage_attractor\n' "$$id" && \
	  $(PIDGIN) compare "$$id" --by b.model --metric convergence --metric first_passage_attractor -o pidgin_output && \
	  printf '\n$$ pidgin list\n' && $(PIDGIN) list -o pidgin_output && \
	  printf '\nIts pages:\n' && \
	  for page in report.html README.md notebook.ipynb transcripts figures; do \
	    printf '  %s\n' pidgin_output/experiments/experiment_"$$id"_*/$$page; \
	  done

test: $(READY) $(MOCK) ## run the tests; ARGS='-k word' chooses some
	@$(PY) -m pytest $(ARGS)

# A mock server that others made, for tests. They skip without it, so nothing fails here.
$(MOCK):
	@if ! command -v node >/dev/null || ! command -v npm >/dev/null; then \
	  echo "-- absent: node and npm (the tests against $(AIMOCK) are skipped)"; \
	elif npm install --no-save --no-package-lock --no-audit --no-fund --silent --fetch-retries 0 $(AIMOCK) >/dev/null 2>&1; then \
	  touch $@; \
	else \
	  echo "-- absent: npm package $(AIMOCK), it could not be installed (its tests are skipped)"; \
	fi

check: $(READY) ## lint, format, types, imports between the floors, docs in step with the code
	@failed=; \
	step() { printf '%s\n' "-- $$1"; name=$$1; shift; "$$@" || failed="$$failed [$$name]"; }; \
	step 'ruff check' $(PY) -m ruff check .; \
	step 'ruff format' $(PY) -m ruff format --check .; \
	step 'mypy' $(PY) -m mypy; \
	step 'import-linter' $(PY) -c 'from importlinter.cli import lint_imports_command as run; run()' --no-logo; \
	step 'docs in step' $(PY) docs/generate.py --check; \
	command -v node >/dev/null || echo "-- absent: node (tests against a mock server by others need it)"; \
	command -v chromium >/dev/null || echo "-- absent: chromium (nothing needs it yet)"; \
	[ -z "$$failed" ] || { echo "FAILED:$$failed"; exit 1; }

bench: $(READY) ## measure against the budgets; ARGS=--quick takes a fifth of the time
	@$(PY) -m benchmarks $(ARGS)

docs: $(READY) ## write the reference pages anew from the code
	@$(PY) docs/generate.py

pictures: $(READY) ## draw the pictures of the README anew from real runs
	@$(PY) docs/pictures.py

lock: ## refresh requirements-dev.txt to the newest versions that fit pyproject.toml
	@set -e; scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(call quoted,$(PYTHON)) -m venv "$$scratch/venv"; \
	"$$scratch/venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check uv; \
	mkdir "$$scratch/project"; cp pyproject.toml README.md LICENSE "$$scratch/project"; \
	(cd "$$scratch/project" && ../venv/bin/python -m uv export --quiet --format requirements-txt --no-emit-project \
	  --all-extras --no-header --output-file requirements-dev.txt); \
	cp "$$scratch/project/requirements-dev.txt" requirements-dev.txt

clean: ## remove .venv and everything built; records in pidgin_output stay
	@rm -rf .venv node_modules build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find pidgin_cli tests benchmarks docs -name __pycache__ -prune -exec rm -rf {} +
