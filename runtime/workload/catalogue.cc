#include <algorithm>
#include <vector>

#include "runtime/workload/workload.h"

namespace fabricast {

// Sizes: 512 in and 128 out is a short chat turn. At one request, three RTX PRO 6000 generate some
// 8 tokens a second of a 405B in INT4 (69.6 GB of weights a stage / 1.79 TB/s, three stages: 0.12 s
// a token), so a turn takes about 15 s and 0.1 requests a second keep one or two in flight.
const std::vector<WorkloadName>& WorkloadCatalogue() {
  static const auto& catalogue = *new std::vector<WorkloadName>{
      {"chat-1", "closed:concurrency=1,requests=16,input=512,output=128",
       "short chat turns, one after the other: latency"},
      {"chat-closed-32", "closed:concurrency=32,requests=128,input=512,output=128",
       "short chat turns, 32 at a time: throughput"},
      {"chat-closed-8", "closed:concurrency=8,requests=64,input=512,output=128",
       "short chat turns, 8 at a time"},
      {"chat-poisson",
       "poisson:rate=0.1,requests=100,input=lognormal(512;0.8;8192),output=lognormal(128;0.6;1024)",
       "chat turns of mixed length at a rate that three workstation GPUs sustain with a 405B"},
      {"long-context-1", "closed:concurrency=1,requests=8,input=8192,output=256",
       "long prompts, one after the other: prefill"},
      {"synthetic-hour", "bundled:synthetic_hour.csv",
       "an hour of made-up chat traffic with a slow swell and five bursts"},
  };
  return catalogue;
}

}  // namespace fabricast
