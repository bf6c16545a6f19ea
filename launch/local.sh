#!/usr/bin/env bash
# Run jdiff on this machine, and again where it was preempted or has crashed.
#
#   launch/local.sh train --config=demo_t2i --workdir=runs/shapes
#   PROCESSES=8 launch/local.sh train ...    a process for each of eight GPUs, in place of one for all
#
# RESTARTS (5): how often it is started again.   DELAY (5): seconds before it is, twice as many each time.
# A mistake (status 2), and what is asked to stop by Ctrl-C or SIGTERM, is not started again.
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

# Sets status: that of the process whose is highest. A signal ends `wait`, and not what it waits for.
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

for ((again = 0; ; again++)); do
  start "$@"
  finish
  if ((status == 0 || status == 2 || status == 130)) || [[ $stopped ]]; then
    exit "$status"
  elif ((again == restarts)); then
    echo "launch/local.sh: ended with status $status, and was started again $restarts times; RESTARTS allows more" >&2
    exit "$status"
  fi
  echo "launch/local.sh: ended with status $status; starting it again in $delay s" >&2
  sleep "$delay" &
  running=($!)
  finish
  [[ $stopped ]] && exit 75
  delay=$((delay * 2))
done
