#!/usr/bin/env bash
# Sets up everything on a fresh Debian or Ubuntu machine: system libraries, .venv, the package,
# and the swap of pillow for pillow-simd, last. Run it again at any time: what is there is kept.
set -euo pipefail
cd "$(dirname "$0")/.."

log() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# FFCV is built from source against OpenCV and libturbojpeg; pillow-simd against libjpeg and zlib.
packages=(libopencv-dev libturbojpeg0-dev pkg-config g++ libjpeg-dev zlib1g-dev python3-venv)

missing_packages() {
    local package
    for package in "${packages[@]}"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] \
            || printf '%s\n' "$package"
    done
}

install_system_libraries() {
    local missing
    command -v dpkg-query >/dev/null || fail "this script knows Debian and Ubuntu only;" \
        "install OpenCV, libturbojpeg, libjpeg and zlib with headers, pkg-config and a C++" \
        "compiler by hand, then: python3 -m venv .venv and the pip lines at the end of this file"
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -gt 0 ] || return 0
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "these Debian packages are needed and this user is" \
            "neither root nor has sudo; ask an administrator for: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    log "installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq \
        --no-install-recommends "${missing[@]}" >/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "Python 3.11, 3.12 or 3.13 is needed; name one with PYTHON=/path/to/python"
}

# The stamp holds what the environment was made from, so that a second run does nothing.
stamp=.venv/teachonce.stamp
wanted() { cat pyproject.toml scripts/setup.sh | sha256sum; }

install_system_libraries
if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    log "making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
if [ "$(cat "$stamp" 2>/dev/null)" != "$(wanted)" ]; then
    rm -f "$stamp"
    pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
    log "installing the package and what it needs (several GB the first time)"
    # torch first, unpinned: the newest build and its torchvision belong together.
    "${pip[@]}" setuptools wheel
    "${pip[@]}" torch torchvision
    "${pip[@]}" -e '.[dev,demo]'
    # pillow and pillow-simd own the same folder: the one that shall stay goes in last.
    .venv/bin/python -m pip uninstall --quiet --yes pillow pillow-simd
    "${pip[@]}" --no-deps --no-binary pillow-simd 'pillow-simd>=12.1.1,<12.2'
    .venv/bin/python - <<'PY'
import PIL
import ffcv
import torchvision
if ".post" not in PIL.__version__:
    raise SystemExit(f"setup: error: PIL is {PIL.__version__}, not pillow-simd")
PY
    log "compiling the replay, once"
    .venv/bin/python - <<'PY'
import trainer.replay.loader  # FFCV, without its noise
from trainer.replay.decoder import compile_replay

compile_replay()
PY
    wanted > "$stamp"
    log "done"
fi
