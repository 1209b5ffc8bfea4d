#!/bin/sh
# Installs what tests drive, `slurm` or `browser`, where that is possible; says why where it is not.
set -eu

case "${1:?slurm or browser}" in
slurm)
    programs="slurmctld slurmd sbatch munged ip unshare setpriv"
    packages="slurm-wlm munge iproute2"
    ;;
browser)
    programs=$(command -v chromium-browser >/dev/null && echo chromium-browser || echo chromium)
    packages=chromium
    ;;
esac

missing=
for program in $programs; do
    command -v "$program" >/dev/null || missing="$missing $program"
done

if [ -z "$missing" ]; then
    exit 0
elif [ "$(id -u)" != 0 ]; then
    echo "missing$missing; installing them needs root, so the $1 tests will be skipped" >&2
elif ! command -v apt-get >/dev/null; then
    echo "missing$missing; no apt-get here, so the $1 tests will be skipped" >&2
else
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086  # a list
    apt-get install -y -qq --no-install-recommends $packages
fi
