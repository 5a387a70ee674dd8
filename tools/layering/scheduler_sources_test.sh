#!/bin/bash
# Fails if the scheduler includes a clock, a thread or a lock. Its tests and benchmarks may.

set -euo pipefail
cd "$(dirname "$(readlink -f WORKSPACE)")/runtime/scheduler"

standard='<(thread|chrono|mutex|shared_mutex|condition_variable|future|semaphore|latch|barrier|ctime|time\.h|sys/time\.h|pthread\.h)>'
abseil='"absl/(time|synchronization)/'
sources="$(find . \( -name '*.h' -o -name '*.cc' \) ! -name '*_test.cc' ! -name '*_benchmark.cc')"
if [[ -z "${sources}" ]]; then
  echo "there are no sources to look at" >&2
  exit 1
fi
if grep -nE "#include *(${standard}|${abseil})" ${sources}; then
  echo "runtime/scheduler is a pure state machine: time comes in with each event." >&2
  exit 1
fi
