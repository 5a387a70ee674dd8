#include "simulator/flow_network.h"

#include <cmath>
#include <map>
#include <set>
#include <simgrid/kernel/Timer.hpp>
#include <simgrid/s4u.hpp>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

namespace sg = simgrid::s4u;

bool engine_made = false;

std::unique_ptr<sg::Engine> MakeEngine() {
  FABRICAST_CHECK(!engine_made)
      << "SimGrid allows one engine a process; run others in a child process";
  engine_made = true;
  // Quiet: SimGrid logs its own configuration changes.
  static char arg0[] = "fabricast";
  static char arg1[] = "--log=root.thres:error";
  static char* argv[] = {arg0, arg1, nullptr};
  int argc = 2;
  auto engine = std::make_unique<sg::Engine>(&argc, argv);
  // The default model is TCP's: latency x 13, bandwidth x 0.97, a window, 5 % for acknowledgements.
  // These give bytes / rate exactly; they must come after the engine and before the first zone.
  sg::Engine::set_config("network/model:CM02");
  sg::Engine::set_config("network/crosstraffic:0");
  sg::Engine::set_config("network/TCP-gamma:1e18");
  return engine;
}

}  // namespace

struct FlowNetwork::Impl {
  struct Flow {
    std::function<void()> arrived;
    sg::CommPtr comm;
  };

  std::unique_ptr<sg::Engine> engine = MakeEngine();
  std::map<int, sg::Host*> hosts;
  std::set<std::pair<int, int>> paths;
  std::vector<std::unique_ptr<Flow>> flows;  // owns all
  std::vector<Flow*> free;
  // An activity must not be released inside its own completion callback: they wait here for the
  // next start.
  std::vector<Flow*> ended;
  bool in_completion = false;
  int64_t events = 0;
};

FlowNetwork::FlowNetwork(const Topology& topology, const std::vector<Path>& paths)
    : impl_(std::make_unique<Impl>()) {
  sg::NetZone* zone = sg::create_full_zone("fabricast");
  std::map<int, sg::Link*> links;
  for (const Path& path : paths) {
    if (!impl_->paths.emplace(path.from, path.to).second) continue;
    for (int gpu : {path.from, path.to}) {
      sg::Host*& host = impl_->hosts[gpu];
      if (host == nullptr) host = zone->create_host(topology.gpus()[gpu].name, 1)->seal();
    }
    std::vector<sg::LinkInRoute> hops;
    for (int segment : topology.route(path.from, path.to).segments) {
      sg::Link*& link = links[segment];
      if (link == nullptr) {
        const Segment& made_from = topology.segments()[segment];
        // Latency 0: with latencies SimGrid would share bandwidth in inverse proportion to them.
        link = zone->create_link(absl::StrCat("segment ", segment, " ", made_from.name),
                                 made_from.payload_bytes_per_s)
                   ->seal();
      }
      hops.emplace_back(link);
    }
    if (std::isfinite(path.max_bytes_per_s)) {
      hops.emplace_back(
          zone->create_link(absl::StrCat("stream ", path.from, " ", path.to), path.max_bytes_per_s)
              ->seal());
    }
    zone->add_route(impl_->hosts[path.from]->get_netpoint(), impl_->hosts[path.to]->get_netpoint(),
                    nullptr, nullptr, hops, /*symmetrical=*/false);
  }
  zone->seal();
  impl_->engine->seal_platform();
  Impl* impl = impl_.get();
  sg::Activity::on_completion_cb([impl](const sg::Activity& activity) {
    auto* flow = activity.get_data<Impl::Flow>();
    impl->ended.push_back(flow);
    ++impl->events;
    std::function<void()> arrived = std::move(flow->arrived);
    impl->in_completion = true;
    arrived();
    impl->in_completion = false;
  });
}

FlowNetwork::~FlowNetwork() = default;

double FlowNetwork::now() const { return sg::Engine::get_clock(); }

void FlowNetwork::After(double seconds, std::function<void()> call) {
  ++impl_->events;
  simgrid::kernel::timer::Timer::set(now() + seconds, std::move(call));
}

void FlowNetwork::StartFlow(int from, int to, double bytes, std::function<void()> arrived) {
  FABRICAST_CHECK(impl_->paths.contains({from, to})) << "no path " << from << " to " << to;
  if (bytes <= 0) {
    After(0, std::move(arrived));
    return;
  }
  if (!impl_->in_completion) {
    for (Impl::Flow* flow : impl_->ended) {
      flow->comm = nullptr;
      impl_->free.push_back(flow);
    }
    impl_->ended.clear();
  }
  if (impl_->free.empty()) {
    impl_->flows.push_back(std::make_unique<Impl::Flow>());
    impl_->free.push_back(impl_->flows.back().get());
  }
  Impl::Flow* flow = impl_->free.back();
  impl_->free.pop_back();
  flow->arrived = std::move(arrived);
  flow->comm = sg::Comm::sendto_init(impl_->hosts[from], impl_->hosts[to]);
  flow->comm->set_payload_size(static_cast<uint64_t>(std::ceil(bytes)));
  flow->comm->set_data(flow);
  flow->comm->start();
}

void FlowNetwork::Run() { impl_->engine->run(); }

int64_t FlowNetwork::events() const { return impl_->events; }

}  // namespace fabricast
