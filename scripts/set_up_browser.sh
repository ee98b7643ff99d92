#!/usr/bin/env bash
# Chromium, for the tests that look at the dashboard; without it they are skipped.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then
        exit 0
    fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "no Chromium: the dashboard's browser tests will be skipped; install the package" \
        "'chromium' of your system to run them" >&2
    exit 0
fi
echo "==> Chromium, for the dashboard's tests"
apt-get install -y --no-install-recommends chromium >/dev/null ||
    { apt-get update >/dev/null && apt-get install -y --no-install-recommends chromium >/dev/null; } ||
    echo "Chromium could not be installed: the dashboard's browser tests will be skipped" >&2
