#!/usr/bin/env bash
# Run jdiff on this machine; restart it after preemption or a crash.
#
#   launch/local.sh train --config=demo_t2i --workdir=runs/shapes
#   PROCESSES=8 launch/local.sh train ...    one process per GPU, for eight GPUs; default: one process for all
#
# RESTARTS (5): number of restarts.   DELAY (5): seconds before the first one, doubled for each further one.
# No restart after a user error (status 2), nor after Ctrl-C or SIGTERM.
set -uo pipefail

processes=${PROCESSES:-1} restarts=${RESTARTS:-5} delay=${DELAY:-5}
running=() stopped=''

stop() {
  stopped=yes
  kill -TERM "${running[@]}" 2>/dev/null
}
trap stop INT TERM

start() {
  running=()
  if ((processes == 1)); then
    jdiff "$@" &
    running+=($!)
    return
  fi
  local port=$((20000 + RANDOM % 20000)) i
  for ((i = 0; i < processes; i++)); do
    JAX_LOCAL_DEVICE_IDS=$i jdiff "$@" --coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$i" &
    running+=($!)
  done
}

# Sets status to the highest exit status. A signal interrupts `wait` but not the process, so it waits again.
finish() {
  local code pid
  status=0
  for pid in "${running[@]}"; do
    while wait "$pid"; kill -0 "$pid" 2>/dev/null; do :; done
    wait "$pid"
    code=$?
    ((code > status)) && status=$code
  done
}

for ((attempt = 0; ; attempt++)); do
  start "$@"
  finish
  if ((status == 0 || status == 2 || status == 130)) || [[ $stopped ]]; then
    exit "$status"
  elif ((attempt == restarts)); then
    echo "launch/local.sh: exited with status $status after $restarts restarts; RESTARTS allows more" >&2
    exit "$status"
  fi
  echo "launch/local.sh: exited with status $status; restarting in $delay s" >&2
  sleep "$delay" &
  running=($!)
  finish
  [[ $stopped ]] && exit 75
  delay=$((delay * 2))
done
