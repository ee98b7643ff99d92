#!/usr/bin/env bash
# Write requirements-demo.lock and requirements-dev.lock: every package that `make` installs, for all
# platforms and Pythons, its version and the hashes of its files. Run it after a change of the
# dependencies in pyproject.toml, or with --upgrade to take what is newer.
# Usage: bash scripts/lock.sh [--upgrade], in the repository root, after `make lint`.
set -euo pipefail

# What builds the editable install (set_up.sh), beside what pyproject.toml lists.
build='hatchling>=1.27 editables'

compile() { # EXTRA FILE [OPTION...]
    printf '%s\n' $build | .venv/bin/uv pip compile pyproject.toml - --extra "$1" --output-file "$2" \
        --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet "${@:3}"
}

compile dev requirements-dev.lock "$@"
compile demo requirements-demo.lock --constraint requirements-dev.lock
