# make run | test | docs | publish | lab | notebooks | readme | lint | lock | clean.  Variables: PYTHON, VENV, CPU, WORKERS, ARGS.
PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),.venv)
WORKERS ?= 2
ARGS ?=
# CPU=1 takes torch from PyTorch's own index, without the CUDA packages (what it needs comes from the usual index later)
CPU ?=
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# what pip leaves uncompiled is compiled once, at its first import; with this set, as container images have it, at every one
unexport PYTHONDONTWRITEBYTECODE

PY := $(VENV)/bin/python
TORCH := $(if $(CPU),--no-deps --index-url https://download.pytorch.org/whl/cpu) $(shell grep '^torch==' constraints.txt)
SOURCES := constraints.txt settings.ini setup.py pyproject.toml

.PHONY: run test docs publish lab notebooks readme lint lock clean

run: $(VENV)/.installed
	"$(VENV)/bin/rag-finetune" run $(ARGS)

# ends with pytest's closing line; lint and types are among the tests
test: $(VENV)/.installed-dev
	"$(PY)" -m pip check
	"$(PY)" -m pytest -n $(WORKERS) --dist worksteal --durations 10 $(ARGS)

# the site into _docs/, from the notebooks with the outputs that they carry; a warning is an error
docs: $(VENV)/.installed-docs
	"$(PY)" docs/build.py

# the site as the only commit of the branch gh-pages at origin
publish: docs
	mkdir -p build && rm -f build/site.index
	GIT_INDEX_FILE="$(CURDIR)/build/site.index" git --work-tree=_docs add --all --force .
	git push --force origin "$$(git -c user.name=docs -c user.email=docs@localhost commit-tree -m "The site of $$(git rev-parse HEAD)" \
	    "$$(GIT_INDEX_FILE="$(CURDIR)/build/site.index" git write-tree)"):refs/heads/gh-pages"

lab: $(VENV)/.installed-dev
	"$(PY)" -m jupyterlab nbs

# export, execute with outputs, hash, clean
notebooks: $(VENV)/.installed-dev
	"$(VENV)/bin/nbdev-export"
	"$(PY)" tests/notebooks.py execute
	"$(VENV)/bin/nbdev-clean"

readme: $(VENV)/.installed-dev
	"$(PY)" docs/build.py --ladder
	"$(PY)" tests/notebooks.py readme

lint: $(VENV)/.installed-dev
	"$(PY)" -m ruff check .
	"$(PY)" -m mypy

# every version that a fresh environment gets, into constraints.txt: loosen that file first (all but torch may go), then run this
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install $(TORCH)
	build/lock/bin/python -m pip install -c constraints.txt ".[dev]"
	(sed -n '/^#/p' constraints.txt; build/lock/bin/python -m pip freeze --all --exclude pip --exclude rag_finetune | sed 's/+[a-z0-9.]*$$//') > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf build dist _docs _proc *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(PY):
	$(PYTHON) -m venv "$(VENV)"

# torch first and by itself: asked for together with the rest, pip may choose a build that brings the CUDA packages;
# nothing is compiled to bytecode before it is imported, which most of it never is
$(VENV)/.torch: constraints.txt | $(PY)
	"$(PY)" -m pip install --no-compile -c constraints.txt $(TORCH)
	touch "$@"

$(VENV)/.installed: $(SOURCES) $(VENV)/.torch
	"$(PY)" -m pip install --no-compile -c constraints.txt -e .
	touch "$@"

$(VENV)/.installed-dev: $(SOURCES) $(VENV)/.torch
	"$(PY)" -m pip install --no-compile -c constraints.txt -e ".[dev]"
	touch "$@" "$(VENV)/.installed" "$(VENV)/.installed-docs"

$(VENV)/.installed-docs: $(SOURCES) $(VENV)/.torch
	"$(PY)" -m pip install --no-compile -c constraints.txt -e ".[docs]"
	touch "$@" "$(VENV)/.installed"
