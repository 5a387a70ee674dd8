// What the processor can do at most, by plain loops. Seconds are the processor's, as in
// random_stage.h.
#ifndef FABRICAST_BENCHMARKS_ENGINE_PROCESSOR_RATES_H_
#define FABRICAST_BENCHMARKS_ENGINE_PROCESSOR_RATES_H_

namespace fabricast {

// Bytes a second that `threads` together read of `gigabytes` of memory, adding it up. Here and
// below: Undisturbed of some passes.
double ReadRate(int threads, double gigabytes);

// Bytes a second that one thread copies of messages larger than caches.
double CopyRate();

// Float32 operations a second of independent fused multiply-adds in registers, two operations each,
// with the widest vectors that the processor has.
double MultiplyAddRate(int threads);

}  // namespace fabricast

#endif  // FABRICAST_BENCHMARKS_ENGINE_PROCESSOR_RATES_H_
