#!/bin/sh
# Installs the browser that the report's tests drive, where that is possible; says why where it is not.
set -eu

if command -v chromium >/dev/null || command -v chromium-browser >/dev/null; then
    exit 0
elif [ "$(id -u)" != 0 ]; then
    echo "tests/browser: no chromium; installing it needs root, so the browser tests will be skipped" >&2
elif ! command -v apt-get >/dev/null; then
    echo "tests/browser: no chromium and no apt-get here, so the browser tests will be skipped" >&2
else
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium
fi
