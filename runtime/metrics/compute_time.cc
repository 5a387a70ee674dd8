#include "runtime/metrics/compute_time.h"

namespace fabricast {

double TotalSeconds(const ComputeTime& time) {
  return time.weight_read_s() + time.matrix_compute_s() + time.decode_attention_s() +
         time.prefill_attention_s() + time.elementwise_s() + time.collective_s() +
         time.overhead_s();
}

void AddScaled(const ComputeTime& time, double factor, ComputeTime& sum) {
  sum.set_weight_read_s(sum.weight_read_s() + factor * time.weight_read_s());
  sum.set_matrix_compute_s(sum.matrix_compute_s() + factor * time.matrix_compute_s());
  sum.set_decode_attention_s(sum.decode_attention_s() + factor * time.decode_attention_s());
  sum.set_prefill_attention_s(sum.prefill_attention_s() + factor * time.prefill_attention_s());
  sum.set_elementwise_s(sum.elementwise_s() + factor * time.elementwise_s());
  sum.set_collective_s(sum.collective_s() + factor * time.collective_s());
  sum.set_overhead_s(sum.overhead_s() + factor * time.overhead_s());
}

}  // namespace fabricast
