#!/usr/bin/env bash
# Run jdiff on every worker of a TPU pod slice; create a new slice after a spot slice is preempted.
#
#   NAME=shapes ZONE=us-west4-a TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite SETUP='pip install "jdiff[tpu,gcs]"' \
#     launch/tpu.sh train --config=demo_t2i --workdir=gs://bucket/shapes
#
# NAME: of the run and of its queued resource.   SETUP: a command to run on each worker first.
# SPOT (yes): whether to use a preemptible slice.   RESTARTS (20): number of restarts.
# Ctrl-C or SIGTERM stops the workers, which save a checkpoint, and keeps the slice.
set -uo pipefail

: "${NAME:?set it to the name of the run}" "${ZONE:?set it to a zone, such as us-west4-a}"
: "${TYPE:?set it to an accelerator type, such as v5litepod-16}"
: "${RUNTIME:?set it to a runtime version, such as v2-alpha-tpuv5-lite}"
if [[ ! $NAME =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]]; then
  echo "launch/tpu.sh: NAME is '$NAME'; it must be lower-case letters, digits and -, at most 40 characters" >&2
  exit 2
fi
printf -v command '%q ' jdiff "$@"
spot=() stopped=''
[[ ${SPOT:-yes} == yes ]] && spot=(--spot)

tpus() { gcloud compute tpus "$@" --zone="$ZONE" --quiet; }
on_workers() { tpus tpu-vm ssh "$NAME" --worker=all --command="$1"; }
state() { tpus queued-resources describe "$NAME" --format='value(state.state)' 2>/dev/null; }
delete_slice() { tpus queued-resources delete "$NAME" --force; }

stop() {
  stopped=yes
  on_workers 'pkill -TERM -x jdiff'
}
trap stop INT TERM

# Runs a command so that traps run meanwhile, and sets status. A signal interrupts `wait` but not the command.
run() {
  "$@" &
  local pid=$!
  while wait "$pid"; kill -0 "$pid" 2>/dev/null; do :; done
  wait "$pid"
  status=$?
}

for ((attempt = 0; ; attempt++)); do
  if [[ -z $(state) ]]; then
    tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" \
      "${spot[@]}" || exit
  fi
  while [[ $(state) =~ ^(CREATING|ACCEPTED|WAITING_FOR_RESOURCES|PROVISIONING)$ ]]; do
    run sleep "${POLL:-30}"
    [[ $stopped ]] && break
  done
  status=1
  [[ ! $stopped && $(state) == ACTIVE ]] && run on_workers "${SETUP:-true} && $command"
  if [[ $stopped ]]; then
    echo "launch/tpu.sh: stopped; the slice is kept, to delete it: gcloud compute tpus queued-resources delete $NAME" >&2
    exit "$status"
  fi
  if ((status == 0 || status == 2)); then
    delete_slice
    exit "$status"
  fi
  slice=$(state)
  echo "launch/tpu.sh: exited with status $status, the slice is ${slice:-deleted}" >&2
  [[ $slice == ACTIVE || -z $slice ]] || delete_slice
  ((attempt < ${RESTARTS:-20})) || exit "$status"
done
