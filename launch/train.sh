#!/usr/bin/env bash
# One process of a training run; the launchers beside this file start one on each machine.
#
#   launch/train.sh [ARGUMENTS of python -m one4d_jax.train]
#
# ONE4D_MACHINE=h100   sets the flags of launch/env/h100.sh first
# PYTHON=.venv/bin/python   the interpreter (default: python)
# FINISHED_BY=PATH   what exists when the run is over. A run that was asked to stop saves and exits with 0; where only
#                    the status counts and PATH is not there yet, this exits with 75 instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -n "${ONE4D_MACHINE:-}" ]; then
  if [ ! -f "launch/env/$ONE4D_MACHINE.sh" ]; then
    echo "error: ONE4D_MACHINE=$ONE4D_MACHINE: there is no launch/env/$ONE4D_MACHINE.sh" >&2
    exit 2
  fi
  # shellcheck source=/dev/null
  source "launch/env/$ONE4D_MACHINE.sh"
fi

train=("${PYTHON:-python}" -m one4d_jax.train --config configs/one4d.py "$@")
[ -n "${FINISHED_BY:-}" ] || exec "${train[@]}"

trap 'again=1; [ -z "${!:-}" ] || kill -TERM "$!"' TERM INT
"${train[@]}" &
child=$! again=1 status=0
while [ -n "$again" ]; do # a signal ends wait, but not the child
  again=''
  wait "$child" && status=0 || status=$?
done
if [ "$status" = 0 ] && [ ! -e "$FINISHED_BY" ]; then
  exit 75
fi
exit "$status"
