# make demo   the whole story on the embedded text-to-image model: un-cached and cached, a table, a picture
# make test   the test suite
PYTHON ?= python3
BIN := .venv/bin
UV := $(or $(shell command -v uv 2>/dev/null),$(BIN)/uv)
READY := .venv/.ready
EXTRAS := all

WANTED := -c constraints.txt -e ".[$(EXTRAS)]"

# uv installs in a third of pip's time; it looks where pip is told to look, and where it gets nothing pip is asked.
told = $(or $(PIP_$(2)),$(shell $(PYTHON) -m pip config get global.$(1) 2>/dev/null))
hand_on = $(if $(2),$(1)="$(2)")
AS_PIP = UV_INDEX_STRATEGY=unsafe-best-match \
  $(call hand_on,UV_DEFAULT_INDEX,$(call told,index-url,INDEX_URL)) \
  $(call hand_on,UV_INDEX,$(call told,extra-index-url,EXTRA_INDEX_URL)) \
  $(call hand_on,UV_FIND_LINKS,$(call told,find-links,FIND_LINKS)) \
  $(call hand_on,SSL_CERT_FILE,$(call told,cert,CERT))

# `python -m experiments` and `python -m evaluation` find the checkout from any working directory.
REACHED := import pathlib, sys, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), 'hicache_checkout.pth').write_text(sys.argv[1] + chr(10))

MIRRORS := digits_table2,digits_table3,digits_table4,digits_table7,digits_table8
EMBEDDED := digits_table,digits_sigma,digits_zoo,digits_guidance,$(MIRRORS),emoji_table2,emoji_table3,emoji_table7,emoji_table8,emoji_zoo,small_table5
DEMO := backend=emoji compare=hicache,calibrated num_items=20
SHOWN := num_items=40 results=build/pictures

.PHONY: help setup demo test test-slow test-all mirrors embedded pictures docs check lint format clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(READY) ## create .venv with the exact versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	test -x "$(UV)" || $(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(AS_PIP) "$(UV)" pip install -q --compile-bytecode -p $(BIN)/python $(WANTED) || $(BIN)/python -m pip install -q $(WANTED)
	@$(BIN)/python -c "$(REACHED)" "$(CURDIR)"
	@touch $(READY)

demo: $(READY) ## HiCache and a calibrated plan on the embedded text-to-image model: a table and a picture
	$(BIN)/python run.py $(DEMO) metrics.timing=full metrics.latency_batch=1

test: $(READY) ## the tests; those that need a GPU, Slurm or a browser skip with a reason where it is missing
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(READY) ## the exhaustive ones: every backend, method and scope, every preset, faults; PART=2/4: a part of them
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(if $(PART),--part $(PART))

test-all: test test-slow ## all of them

mirrors: $(READY) ## the paper's Tables 2, 3, 4, 7, 8 on the embedded model, from nothing to results/embedded
	$(BIN)/python -m experiments plan experiment=$(MIRRORS) title=mirrors
	$(BIN)/python -m experiments execute mirrors --devices cpu,cpu
	$(BIN)/python -m experiments tables table=$(MIRRORS) embedded=true

embedded: $(READY) ## every committed table and plot of results/embedded, from nothing, and the numbers of the pages
	$(BIN)/python -m experiments plan experiment=$(EMBEDDED) title=embedded
	$(BIN)/python -m experiments execute embedded --devices cpu,cpu
	$(BIN)/python -m experiments tables table=$(EMBEDDED) embedded=true
	$(BIN)/python -m experiments zoom embedded=true
	$(BIN)/python -m experiments pages

pictures: $(READY) ## the pictures of README.md and docs/, once the report's controls work in chromium, which it needs
	$(BIN)/python -m pytest -q -m browser tests/experiments/test_report.py
	rm -rf build/pictures/sweeps
	$(BIN)/python run.py $(DEMO) results=build/pictures
	cp build/pictures/sweeps/*/sweep_grid.png docs/images/demo.png
	$(BIN)/python run.py experiment=digits_table $(SHOWN)
	$(BIN)/python -m experiments report table=digits_table $(SHOWN) items=20 out=build/pictures/report.html
	chromium --headless=new --no-sandbox --disable-gpu --hide-scrollbars --virtual-time-budget=4000 \
	  --window-size=1300,2180 --screenshot=docs/report.png file://$(CURDIR)/build/pictures/report.html

docs: $(READY) ## the documentation with its API reference, in build/site; warnings are errors
	$(BIN)/python -m mkdocs build --strict

lint: $(READY) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

check: lint test ## lint and the tests

format: $(READY) ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches (never results)
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
