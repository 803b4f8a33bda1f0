# make demo    installs into .venv and trains a model
# make test    installs into .venv and runs the tests
# Both make their own virtual environment and use it again; PYTHON chooses the interpreter (3.11 or newer).

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SOURCES = pyproject.toml setup.py MANIFEST.in README.md $(shell find fastopt -name '*.py' -o -name '*.pyx' -o -name '*.px[di]' -o -name '*.pyi' -o -name '*.h')

.PHONY: demo test bench clean

demo: $(VENV)/demo
	$(BIN)/fastopt demo $(ARGS)

test: $(VENV)/test
	PYTHONSAFEPATH=1 $(BIN)/pytest -q -n auto $(ARGS)

bench: $(VENV)/test
	$(BIN)/fastopt bench $(ARGS)

$(VENV)/created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastopt needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo: $(VENV)/created $(SOURCES)
	rm -rf build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[demo]'
	@touch $@

$(VENV)/test: $(VENV)/created $(SOURCES)
	rm -rf build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[demo,test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
	find fastopt -name '*.c' -delete -o -name '*.so' -delete
