#!/usr/bin/env bash
# Make .venv and install multispin into it, editable, from prebuilt wheels only.
# Usage: bash scripts/set_up.sh demo|dev [FILE...], in the repository root. The FILEs are touched
# when all went well; make decides by them whether there is anything to do.
# PYTHON=... chooses the interpreter.
set -euo pipefail

extra=$1
shift
log=.venv/install.log

fits() { # does this command run a Python that we support?
    "$@" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if ! fits .venv/bin/python -m pip --version; then
    python=
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        if fits "$candidate"; then # being on PATH is not enough: a pyenv shim may lead nowhere
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "error: no Python 3.11 or newer (tried ${PYTHON:-python3.13, 3.12, 3.11, python3});" \
            "install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2
        exit 2
    fi
    echo "==> .venv: $("$python" --version) ($(command -v "$python"))"
    rm -rf .venv
    if ! "$python" -m venv .venv; then
        rm -rf .venv
        echo "error: '$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 2
    fi
fi

# The versions and hashes of the lock file (scripts/lock.sh), where it has wheels for this Python. That
# is decided beforehand: a file whose hash differs must not lead to another way of installing.
lock=requirements-$extra.lock
if .venv/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 15))' &&
    [ "$(uname -sm)" != "Darwin x86_64" ]; then
    what=(--require-hashes --requirement "$lock")
else
    echo "==> note: $lock is for Python 3.11 to 3.14 and not for Intel Macs; versions are not pinned"
    what=(".[$extra]")
fi

echo "==> packages for '$extra' (prebuilt wheels; under a minute on a fast line, log in $log)"
# Pip's own progress bars do not survive a log: show each large download, and when it installs.
: >"$log"
install() {
    .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
        --only-binary :all: "$@" 2>&1 |
        while IFS= read -r line; do
            printf '%s\n' "$line" >>"$log"
            case $line in
                *"Downloading "*" MB)"*) echo "    ${line#"${line%%[! ]*}"}" ;;
                "Installing collected packages"*) echo "    Installing" ;;
            esac
        done
}
if ! { install "${what[@]}" && install --no-deps --no-build-isolation --editable .; }; then
    tail -n 15 "$log" >&2
    echo "error: pip could not install multispin[$extra]; its words are above and in $log." \
        "Check the network and run make again" >&2
    exit 1
fi
for stamp in "$@"; do
    touch "$stamp"
done
