# Two commands do everything, from a fresh clone, with Python 3.11 and pip: `make demo` and `make test`.
.DEFAULT_GOAL := help
.PHONY: help demo test lint docs report audit ui deploy undeploy rollback rebuild lineage backup serve score prune clean

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION := false

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

$(VENV)/.installed: constraints.txt hashes.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on PATH; install Python 3.11 or say make PYTHON=..." >&2; exit 1; }
	@echo "installing into $(VENV) (once; a few minutes) ..."
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r hashes.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r constraints.txt
	@touch $@

demo: $(VENV)/.installed  ## logs in, backbone frozen, a task added by one line, champions in the registry
	@$(BIN)/python -m tasks.demo

test: $(VENV)/.installed  ## the whole suite
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed  ## style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

docs: $(VENV)/.installed  ## the pages of docs/, with a reference from the code, in site/
	@$(BIN)/python -m tasks.reference && $(BIN)/mkdocs build --strict --quiet && echo site/index.html

report: $(VENV)/.installed  ## the page about the newest run
	@$(BIN)/python -m tasks.report params.yaml artifacts data artifacts/report/index.html

audit: $(VENV)/.installed  ## hashes, licences and, with OSV=all.zip, known vulnerabilities of what is installed
	@$(BIN)/python -m tasks.supply_chain hashes
	@$(BIN)/python -m tasks.supply_chain licences artifacts/supply_chain
	@if [ -n "$(OSV)" ]; then $(BIN)/python -m tasks.supply_chain vulnerabilities artifacts/supply_chain --osv "$(OSV)"; \
	  else echo "vulnerabilities: not checked; give OSV=all.zip, a copy of osv.dev's PyPI records"; fi

ui: $(VENV)/.installed  ## the MLflow pages, on this machine only
	@$(BIN)/python -m tasks.ui

deploy: $(VENV)/.installed  ## Prefect server, worker and the schedules of prefect.yaml
	@$(BIN)/python -m tasks.deploy up

undeploy: $(VENV)/.installed  ## stop what deploy started
	@$(BIN)/python -m tasks.deploy stop

rollback: $(VENV)/.installed  ## MODEL=recommend-offer_make: back to the champion before
	@$(BIN)/python -m tasks.rollback $(MODEL)

rebuild: $(VENV)/.installed  ## VERSION=models:/recommend-offer_make/1: the same bytes again, from its tags
	@$(BIN)/python -m tasks.rebuild $(VERSION)

lineage: $(VENV)/.installed  ## VERSION=models:/recommend-offer_make@champion: data, code, parents, verdict, users
	@$(BIN)/python -m tasks.lineage $(VERSION)

backup: $(VENV)/.installed  ## TO=FOLDER: objects, databases and verdicts, to restore from
	@$(BIN)/python -m tasks.backup save $(TO)

serve: $(VENV)/.installed  ## MODEL=recommend-offer_make: the champion over HTTP, on this machine only
	@$(BIN)/python -m tasks.serve_http $(MODEL)

score: $(VENV)/.installed  ## MODEL=recommend-offer_make ROWS=in.parquet OUT=out.parquet: the champion on raw rows
	@$(BIN)/python -m tasks.score models:/$(MODEL)@champion $(ROWS) $(OUT)

prune: $(VENV)/.installed  ## remove what retired tasks and datasets left
	@$(BIN)/python -m tasks.prune params.yaml dvc.lock

clean:  ## the environment and every derived file; data/, landing/ and mlruns/ stay
	rm -rf $(VENV) artifacts .dvc/tmp
