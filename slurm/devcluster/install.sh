#!/bin/sh
# Installs what the development cluster is made of, where that is possible; says why where it is not.
set -eu

missing=
for program in slurmctld slurmd sbatch munged ip unshare setpriv; do
    command -v "$program" >/dev/null || missing="$missing $program"
done

if [ -z "$missing" ]; then
    exit 0
elif [ "$(id -u)" != 0 ]; then
    echo "slurm/devcluster: missing$missing; installing them needs root, so the Slurm tests will be skipped" >&2
elif ! command -v apt-get >/dev/null; then
    echo "slurm/devcluster: missing$missing; no apt-get here, so the Slurm tests will be skipped" >&2
else
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends slurm-wlm munge iproute2
fi
