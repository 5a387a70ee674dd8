// A GPU's time by the host's clock.
#ifndef FABRICAST_RUNTIME_EXECUTOR_CUDA_GPU_CLOCK_H_
#define FABRICAST_RUNTIME_EXECUTOR_CUDA_GPU_CLOCK_H_

#include <algorithm>
#include <chrono>

namespace fabricast {

// The GPU's clock is only compared with itself (events), so the two are put together where both are
// known: the host sees an event some time after the GPU has passed it, and never before. The least
// such delay of each kWindow sightings is taken to be the same, so that clocks which drift apart
// are corrected (20 ppm are 1.2 ms a minute); after a pause of kPause, that of the next one.
class GpuClock {
 public:
  using Host = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;

  // At gpu() the host saw `host` or just before.
  void Anchor(Host::time_point host) {
    anchor_host_ = host;
    anchor_gpu_ = gpu_;
    seen_ = 0;
    usual_ = Seconds::max();
  }

  // The GPU's time goes on by that much: what lies between two events that follow one another.
  void Advance(Seconds elapsed) {
    gpu_ += elapsed;
    advanced_ = elapsed;
  }

  // What the GPU passed `before` gpu(), by the host's clock.
  Host::time_point At(Seconds before = Seconds(0)) const {
    return anchor_host_ + std::chrono::round<Host::duration>(gpu_ - before - anchor_gpu_);
  }

  // The host sees at `host` that the GPU has come to gpu().
  void Seen(Host::time_point host) {
    Seconds delay = host - At();
    if (advanced_ >= kPause && usual_ != Seconds::max()) {
      anchor_host_ += std::chrono::round<Host::duration>(delay - usual_);
      delay = usual_;
    }
    if (delay < Seconds(0)) {
      anchor_host_ = host - (At() - anchor_host_);
      usual_ = Seconds(0);
    }
    least_ = seen_ == 0 ? delay : std::min(least_, delay);
    if (++seen_ < kWindow) return;
    seen_ = 0;
    if (usual_ == Seconds::max()) {
      usual_ = std::max(least_, Seconds(0));
    } else if (least_ > usual_) {
      anchor_host_ += std::chrono::round<Host::duration>(least_ - usual_);
    }
  }

 private:
  static constexpr int kWindow = 256;
  static constexpr Seconds kPause{1};

  Host::time_point anchor_host_{};
  Seconds anchor_gpu_{0};
  Seconds gpu_{0};
  Seconds advanced_{0};
  int seen_ = 0;
  Seconds least_{0};
  Seconds usual_ = Seconds::max();
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_EXECUTOR_CUDA_GPU_CLOCK_H_
