#!/usr/bin/env bash
# Run jdiff on every worker of a TPU pod slice, and on another slice where a spot one was taken away.
#
#   NAME=shapes ZONE=us-west4-a TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite SETUP='pip install "jdiff[tpu,gcs]"' \
#     launch/tpu.sh train --config=demo_t2i --workdir=gs://bucket/shapes
#
# The run's NAME is that of its resources.   SETUP: what is done on each worker first.
# SPOT (yes): whether the slice may be taken away.   RESTARTS (20): how often it is tried again.
# Ctrl-C or SIGTERM stops the workers, which save, and keeps the slice.
set -uo pipefail

: "${NAME:?is the name of the run}" "${ZONE:?is a zone, as us-west4-a}"
: "${TYPE:?is an accelerator type, as v5litepod-16}" "${RUNTIME:?is a runtime version, as v2-alpha-tpuv5-lite}"
if [[ ! $NAME =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]]; then
  echo "launch/tpu.sh: NAME is '$NAME'; it must be small letters, digits and -, 40 at most" >&2
  exit 2
fi
printf -v command '%q ' jdiff "$@"
spot=() stopped=''
[[ ${SPOT:-yes} == yes ]] && spot=(--spot)

ask() { gcloud compute tpus "$@" --zone="$ZONE" --quiet; }
on_workers() { ask tpu-vm ssh "$NAME" --worker=all --command="$1"; }
state() { ask queued-resources describe "$NAME" --format='value(state.state)' 2>/dev/null; }
give_back() { ask queued-resources delete "$NAME" --force; }

stop() {
  stopped=yes
  on_workers 'pkill -TERM -x jdiff'
}
trap stop INT TERM

# Sets status: that of a command, beside which a signal is heeded. A signal ends `wait`, and not what it waits for.
run() {
  "$@" &
  local pid=$!
  while wait "$pid"; kill -0 "$pid" 2>/dev/null; do :; done
  wait "$pid"
  status=$?
}

for ((again = 0; ; again++)); do
  if [[ -z $(state) ]]; then
    ask queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" \
      "${spot[@]}" || exit
  fi
  while [[ $(state) =~ ^(CREATING|ACCEPTED|WAITING_FOR_RESOURCES|PROVISIONING)$ ]]; do
    run sleep "${POLL:-30}"
    [[ $stopped ]] && break
  done
  status=1
  [[ ! $stopped && $(state) == ACTIVE ]] && run on_workers "${SETUP:-true} && $command"
  if [[ $stopped ]]; then
    echo "launch/tpu.sh: stopped; the slice is kept: gcloud compute tpus queued-resources delete $NAME" >&2
    exit "$status"
  fi
  if ((status == 0 || status == 2)); then
    give_back
    exit "$status"
  fi
  now=$(state)
  echo "launch/tpu.sh: ended with status $status, the slice is ${now:-gone}" >&2
  [[ $now == ACTIVE || -z $now ]] || give_back
  ((again < ${RESTARTS:-20})) || exit "$status"
done
