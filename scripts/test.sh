#!/usr/bin/env bash
# Sets up (see setup.sh), then lints, type-checks and runs the tests. Arguments go to pytest:
# `./scripts/test.sh -m 'not long'` leaves out the long ones.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"
