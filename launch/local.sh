#!/usr/bin/env bash
# Several processes on this machine that train together.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/local.sh -n PROCESSES [-c DEVICES] [ARGUMENTS of python -m one4d_jax.train]
launch/local.sh -n PROCESSES [-c DEVICES] -- COMMAND [ARGUMENTS]

  -n  how many processes; each gets its share of the GPUs of CUDA_VISIBLE_DEVICES, or of all of them
  -c  no GPUs: each process gets this many virtual CPU devices
  --  runs COMMAND instead of the training; it finds its place in JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
      JAX_PROCESS_ID

Each line of output starts with the number of its process. SIGTERM and Ctrl-C reach all processes as SIGTERM: training
saves and ends. If one fails, the others get SIGTERM, 10 seconds later SIGKILL, and its status is returned.
TEXT
}

fail() {
  echo "error: $1; see launch/local.sh -h" >&2
  exit 2
}

positive() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1 '$2' is no positive number"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
processes='' devices='' command=("$root/launch/train.sh")
while (($#)); do
  case $1 in
    -n | -c)
      (($# > 1)) || fail "$1 needs a value"
      positive "$1" "$2"
      if [ "$1" = -n ]; then processes=$2; else devices=$2; fi
      shift 2
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      (($#)) || fail 'no COMMAND after --'
      command=("$@")
      break
      ;;
    *)
      command+=("$@")
      break
      ;;
  esac
done
[ -n "$processes" ] || fail 'give -n PROCESSES'

# -- Who gets which devices -------------------------------------------------------------------------------------------

gpus=()
if [ -n "$devices" ]; then
  export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
else
  if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi >/dev/null; then
    while read -r gpu; do gpus+=("$gpu"); done < <(nvidia-smi --query-gpu=index --format=csv,noheader)
  fi
  ((${#gpus[@]})) || fail 'no GPU here; -c 4 gives each process 4 virtual CPU devices'
  ((${#gpus[@]} % processes == 0)) || fail "${#gpus[@]} GPUs do not divide among $processes processes"
fi
share=$((${#gpus[@]} / processes))

port=$("${PYTHON:-python}" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_NUM_PROCESSES="$processes"

# -- Start ------------------------------------------------------------------------------------------------------------

pipes=$(mktemp -d)
children=() printers=()
send() { # SIGNAL IDS; an id with a minus is a process and all that it started
  kill -s "$1" -- "${@:2}" 2>/dev/null || true
}
trap 'rm -rf "$pipes"' EXIT
stopped=''
trap 'stopped=1; send TERM "${children[@]}"' TERM INT HUP

set -m # each in a group of its own, so that Ctrl-C reaches them by the trap alone
for ((i = 0; i < processes && ${#stopped} == 0; i++)); do
  mkfifo "$pipes/$i"
  # Of a progress bar, which writes over itself, the last state of a line.
  sed -u -e 's/.*\r\(.\)/\1/' -e "s/^/[$i] /" <"$pipes/$i" &
  printers+=($!)
  (
    export JAX_PROCESS_ID=$i
    if ((share)); then
      mine=("${gpus[@]:i * share:share}")
      CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${mine[*]}")
      export CUDA_VISIBLE_DEVICES
    fi
    exec "${command[@]}"
  ) >"$pipes/$i" 2>&1 &
  children+=($!)
done
set +m

# -- Until all have ended ---------------------------------------------------------------------------------------------

status=0 deadline='' running=("${!children[@]}")
while ((${#running[@]})); do
  sleep 0.2 || true
  left=()
  for i in "${running[@]}"; do
    if kill -0 "${children[i]}" 2>/dev/null; then
      left+=("$i")
      continue
    fi
    wait "${children[i]}" 2>/dev/null && ended=0 || ended=$?
    send KILL "-${children[i]}" # data workers of a process that was killed
    if ((ended && !status)); then
      echo "launch/local.sh: process $i ended with status $ended; ending the others" >&2
      status=$ended deadline=$((SECONDS + 10))
      send TERM "${children[@]}"
    fi
  done
  running=(${left[@]+"${left[@]}"})
  if [ -n "$deadline" ] && ((SECONDS > deadline)); then
    for i in ${left[@]+"${left[@]}"}; do send KILL "-${children[i]}"; done
  fi
done
wait "${printers[@]}" || true
exit "$status"
