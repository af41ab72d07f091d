#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice.
set -euo pipefail

if (($# < 2)) || [ "$1" = -h ] || [ "$1" = --help ]; then
  cat <<'TEXT'
launch/tpu_pod.sh NAME ZONE [ARGUMENTS of python -m one4d_jax.train]

Starts launch/train.sh on every host of the TPU NAME by gcloud, which must be logged in. Each host has the repository in
ONE4D_DIR (default: one4d_jax, in the home folder) and sees the same --workdir and data. PYTHON is the interpreter there
(default: .venv/bin/python).
TEXT
  case ${1:-} in -h | --help) exit 0 ;; *) exit 2 ;; esac
fi
name=$1 zone=$2
shift 2

tpu=(gcloud compute tpus tpu-vm)
addresses=$("${tpu[@]}" describe "$name" --zone="$zone" --format='value(networkEndpoints[].ipAddress)')
IFS=';' read -ra hosts <<<"${addresses//$'\n'/;}"
if ((${#hosts[@]} == 0)); then
  echo "error: gcloud names no host of the TPU $name in $zone" >&2
  exit 2
fi

number='http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number'
remote="cd $(printf %q "${ONE4D_DIR:-one4d_jax}")"
remote+=" && JAX_PROCESS_ID=\$(curl -sf -H 'Metadata-Flavor: Google' $number)"
remote+=" && export JAX_PROCESS_ID JAX_COORDINATOR_ADDRESS=${hosts[0]}:8476 JAX_NUM_PROCESSES=${#hosts[@]}"
remote+=" ONE4D_MACHINE=tpu PYTHON=$(printf %q "${PYTHON:-.venv/bin/python}")"
remote+=" && exec bash launch/train.sh"
(($# == 0)) || remote+=$(printf ' %q' "$@")
exec "${tpu[@]}" ssh "$name" --zone="$zone" --worker=all --command="$remote"
