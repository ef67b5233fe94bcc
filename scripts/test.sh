#!/usr/bin/env bash
# Sets up (see setup.sh), then lints, type-checks and runs the tests, three files at a time (some
# wait for processes of their own). Arguments go to pytest: `./scripts/test.sh -m 'not long'` leaves out
# the long ones, `-n 0` takes one process.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh
# The tests of reading over HTTP start a real web server where there is one; CI has it.
if ! command -v nginx >/dev/null && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light \
        >/dev/null || echo "test: nginx could not be installed; its tests are skipped" >&2
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
export OMP_NUM_THREADS=1  # each keeps to one core
.venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
