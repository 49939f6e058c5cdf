# Everything runs in .venv. Each target creates it if necessary.
PYTHON ?= python3
PORT ?= 8000
BIN = .venv/bin

.PHONY: demo test test-all python-test python-test-slow js-test js-test-slow lint docs clean

# The sample site on http://127.0.0.1:8000
demo: .venv/demo
	cd sample_site && ../$(BIN)/python manage.py migrate --verbosity 0
	cd sample_site && ../$(BIN)/python manage.py create_demo_users
	@echo "at http://127.0.0.1:$(PORT)/"
	cd sample_site && ../$(BIN)/python manage.py runserver 127.0.0.1:$(PORT)

# "make test" runs the fast tests in a few minutes, "make test-all" the slow ones. Both list at the
# end the tests that need a program that is not installed. Two files run at a time, and three of the
# slow ones, which wait for half of their time.
PYTEST = $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder
test: js-test python-test
test-all: js-test-slow python-test-slow

python-test: .venv/test node_modules programs
	$(PYTEST) --numprocesses 2 $(or $(TESTS),-m "not slow")

python-test-slow: .venv/test node_modules programs
	@.ci/install postgresql
	$(PYTEST) --numprocesses 3 -m slow

# Tests with compilers, bundlers, and the package as npm installs it.
SLOW_JS = tests/js/packaging.test.mjs tests/js/types.test.mjs
js-test: node_modules
	JS_TESTS="$(filter-out $(SLOW_JS),$(wildcard tests/js/*.test.mjs))" npm test --silent

js-test-slow: node_modules
	JS_TESTS="$(SLOW_JS)" npm test --silent

# Measure one table of docs/proofs: make proof TABLE=revocation (OPTIONS=--small for few samples)
.PHONY: proof
proof: .venv/test $(if $(filter databases history servers,$(TABLE)),servers)
	@.ci/install redis-server $(if $(filter faults history late machines pools rolling scale single_use storm topics,$(TABLE)),nginx postgresql)
	$(BIN)/python -m evidence $(TABLE) $(OPTIONS)

# The servers and databases that only three tables need. mysqlclient is compiled.
.PHONY: servers
servers: .venv/test
	@.ci/install gcc libmariadb-dev mariadb-server pgbouncer pkg-config postgresql
	@$(MAKE) --no-print-directory .venv/servers

# Measure all tables of docs/performance.rst, or one of them: make bench TABLE=replies
TABLES = connects stores replies sync guarded peers handlers memory wrapping parts fanout
.PHONY: bench
bench: .venv/test
	@.ci/install redis-server postgresql
	@# A table that does not reach a promise does not stop the others.
	status=0; for table in $(or $(TABLE),$(TABLES)); do \
		$(BIN)/python -m benchmarks $$table $(OPTIONS) || status=1; done; exit $$status

# Run the tests with each Python of tox.ini, with the oldest and newest dependencies, for docs/matrix.rst
# (OPTIONS=--small: one environment, without the tests).
.PHONY: matrix
matrix: .venv/matrix
	$(BIN)/python -m evidence.matrix $(OPTIONS)

# Build the sdist and the wheel of the last commit in dist/. The builds are reproducible.
.PHONY: dist
dist: .venv/test
	rm -rf build/source dist && mkdir -p build/source
	git archive HEAD | tar -x -C build/source
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python .ci/package build/source dist
	$(BIN)/twine check --strict dist/*

# Measure the tables of the clients in docs/client.rst (OPTIONS=--small for few pages, --resume for the
# second table only).
.PHONY: figures
figures: benchmarks/client/node_modules
	node benchmarks/client/run.mjs $(OPTIONS)

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m django makemigrations --check --dry-run --settings tests.support.settings

# Draw the layers of CONTRIBUTING.rst again after a change of the imports.
.PHONY: drawings
drawings: .venv/test
	$(BIN)/python -m docs.draw_package

# Take the pictures in docs/images/sample_site again after a change of its pages or the admin's, and one
# of each page of the docs in build/pages.
.PHONY: screenshots
screenshots: .venv/test .venv/docs docs
	$(BIN)/python -m docs.screenshots

# Build the pages of docs/ in build/docs. A warning is an error. All pages are built again, because
# each of them lists the others.
docs: .venv/docs
	$(BIN)/sphinx-build -q -W --keep-going -a -E -b html docs build/docs

.venv/bin/pip:
	$(PYTHON) -m venv .venv || { .ci/install python3-venv && $(PYTHON) -m venv .venv; }

.venv/demo .venv/docs .venv/matrix .venv/servers .venv/test: .venv/%: setup.cfg pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

node_modules benchmarks/client/node_modules: %node_modules: %package.json
	cd ./$* && npm install --silent --no-audit --no-fund --no-package-lock
	touch $@

# Install the programs that some tests need, if this user may install them.
.PHONY: programs
programs:
	@.ci/install caddy chromium nginx openssl redis-server systemd

clean:
	rm -rf .tox .venv node_modules benchmarks/client/node_modules build dist *.egg-info sample_site/db.sqlite3*
