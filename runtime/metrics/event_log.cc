#include "runtime/metrics/event_log.h"

#include <google/protobuf/io/gzip_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/check.h"

namespace fabricast {
namespace {

using Column = google::protobuf::RepeatedField<int64_t>;

int64_t Nanoseconds(double seconds) { return std::llround(seconds * 1e9); }

}  // namespace

EventRecorder::EventRecorder(int stages) : stages_(stages) { BeginGeneration(); }

void EventRecorder::BeginGeneration() {
  EventLog::Generation& fresh = *log_.add_generations();
  for (int s = 0; s < stages_; ++s) fresh.add_stages();
  last_launch_ns_ = 0;
  last_entry_request_ = 0;
  entry_end_.clear();
  last_ns_.clear();
}

void EventRecorder::RequestArrived(RequestId id, int64_t prompt_tokens, double now) {
  const int row = log_.request_id_size();
  if (row == 0) origin_ns_ = Nanoseconds(now);
  const int64_t at_ns = Nanoseconds(now) - origin_ns_;
  log_.add_request_id(id - last_arrived_);
  log_.add_arrival_ns(at_ns - last_arrival_ns_);
  log_.add_prompt_tokens(static_cast<uint32_t>(prompt_tokens));
  log_.add_outcome(EventLog::UNENDED);
  last_arrived_ = id;
  last_arrival_ns_ = at_ns;
  row_[id] = row;
}

void EventRecorder::RequestEnded(RequestId id, EventLog::Outcome outcome) {
  const auto row = row_.find(id);
  FABRICAST_CHECK(row != row_.end()) << "request " << id << " ended and never arrived";
  log_.set_outcome(row->second, outcome);
}

void EventRecorder::Launched(const MicroBatch& micro_batch, double now) {
  EventLog::Generation& to = generation();
  FABRICAST_CHECK(micro_batch.id == to.launched_ns_size())
      << "micro-batch " << micro_batch.id << " is launched after " << to.launched_ns_size();
  const int64_t at_ns = Nanoseconds(now) - origin_ns_;
  to.add_launched_ns(at_ns - last_launch_ns_);
  last_launch_ns_ = at_ns;
  last_ns_[micro_batch.id] = at_ns;
  uint32_t decodes = 0;
  for (const BatchEntry& entry : micro_batch.entries) {
    to.add_request(entry.request - last_entry_request_);
    last_entry_request_ = entry.request;
    int64_t& end = entry_end_[entry.request];
    to.add_first_token(entry.first_token - end);
    end = entry.first_token + entry.tokens;
    if (entry.decode) {
      ++decodes;
      continue;
    }
    to.add_prefill_tokens(static_cast<uint32_t>(entry.tokens));
    to.add_prefill_samples(entry.samples);
  }
  to.add_decodes(decodes);
  to.add_prefills(static_cast<uint32_t>(micro_batch.entries.size()) - decodes);
}

void EventRecorder::Add(MicroBatchId id, double now, Column& column) {
  FABRICAST_CHECK(id == column.size())
      << "micro-batch " << id << " comes after " << column.size() << " others";
  const auto last = last_ns_.find(id);
  FABRICAST_CHECK(last != last_ns_.end()) << "micro-batch " << id << " is not in flight";
  const int64_t at_ns = Nanoseconds(now) - origin_ns_;
  column.Add(at_ns - last->second);
  last->second = at_ns;
}

void EventRecorder::Started(int stage, MicroBatchId id, double now) {
  Add(id, now, *generation().mutable_stages(stage)->mutable_wait_ns());
}

void EventRecorder::Computed(int stage, MicroBatchId id, double now) {
  Add(id, now, *generation().mutable_stages(stage)->mutable_compute_ns());
}

void EventRecorder::SendStarted(int stage, MicroBatchId id, double now) {
  Add(id, now, *generation().mutable_stages(stage)->mutable_send_wait_ns());
}

void EventRecorder::SendDelivered(int stage, MicroBatchId id, double now) {
  if (stage + 1 == stages_) return;
  Add(id, now, *generation().mutable_stages(stage)->mutable_hop_ns());
}

void EventRecorder::Completed(MicroBatchId id, double now) {
  EventLog::Stage& last = *generation().mutable_stages(stages_ - 1);
  if (stages_ == 1) last.add_send_wait_ns(0);
  Add(id, now, *last.mutable_hop_ns());
  last_ns_.erase(id);
}

void EventRecorder::PipelineLost() { BeginGeneration(); }

std::string EventRecorder::Finish() {
  if (log_.generations_size() > 1 && generation().launched_ns_size() == 0) {
    log_.mutable_generations()->RemoveLast();
  }
  std::string packed;
  google::protobuf::io::StringOutputStream bytes(&packed);
  google::protobuf::io::GzipOutputStream gzip(&bytes);
  FABRICAST_CHECK(log_.SerializeToZeroCopyStream(&gzip) && gzip.Close()) << "the log is too large";
  log_.Clear();
  return packed;
}

namespace {

// More than any run lasts (104 days), and sums of two do not overflow.
constexpr int64_t kMaxNs = int64_t{1} << 53;
// Positions and requests that are int32_t in RunEvents.
constexpr int64_t kMaxCount = int64_t{1} << 30;

absl::Status Broken(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("the events are broken: ", what));
}

// `sum` += `difference`; whether it is still within `limit`, either way.
bool Advance(int64_t difference, int64_t limit, int64_t& sum) {
  if (difference < -2 * limit || difference > 2 * limit) return false;
  sum += difference;
  return -limit <= sum && sum <= limit;
}

bool ReadTime(const Column& column, int id, int64_t before, int64_t& time) {
  if (id >= column.size()) return true;
  time = before;
  return Advance(column[id], kMaxNs, time);
}

// Makes one RunEvents of a log.
class Reader {
 public:
  Reader(const EventLog& log, int stages) : log_(log) { events_.stages = stages; }

  absl::StatusOr<RunEvents> Read() {
    if (events_.stages < 1) return Broken("a run without stages");
    if (absl::Status status = ReadRequests(); !status.ok()) return status;
    for (const EventLog::Generation& generation : log_.generations()) {
      if (absl::Status status = CheckColumns(generation); !status.ok()) return status;
      if (absl::Status status = ReadSteps(generation); !status.ok()) return status;
      ++events_.generations;
    }
    return std::move(events_);
  }

 private:
  absl::Status ReadRequests() {
    const int count = log_.request_id_size();
    if (log_.arrival_ns_size() != count || log_.prompt_tokens_size() != count ||
        log_.outcome_size() != count) {
      return Broken("requests' columns differ in length");
    }
    int64_t id = 0;
    int64_t arrival_ns = 0;
    for (int i = 0; i < count; ++i) {
      if (!Advance(log_.request_id(i), kMaxNs, id) ||
          !Advance(log_.arrival_ns(i), kMaxNs, arrival_ns) || log_.prompt_tokens(i) > kMaxCount) {
        return Broken(absl::StrCat("request ", i, " is out of range"));
      }
      if (!row_.emplace(id, i).second) return Broken(absl::StrCat("request ", id, " comes twice"));
      events_.requests.push_back({.id = id,
                                  .arrival_ns = arrival_ns,
                                  .prompt_tokens = log_.prompt_tokens(i),
                                  .outcome = log_.outcome(i)});
    }
    return absl::OkStatus();
  }

  absl::Status CheckColumns(const EventLog::Generation& generation) const {
    const int launched = generation.launched_ns_size();
    if (generation.stages_size() != events_.stages) {
      return Broken(absl::StrCat(generation.stages_size(), " stages instead of ", events_.stages));
    }
    if (generation.decodes_size() != launched || generation.prefills_size() != launched) {
      return Broken("micro-batches' columns differ in length");
    }
    int64_t decodes = 0;
    int64_t prefills = 0;
    for (int i = 0; i < launched; ++i) {
      decodes += generation.decodes(i);
      prefills += generation.prefills(i);
    }
    if (generation.request_size() != decodes + prefills ||
        generation.first_token_size() != decodes + prefills ||
        generation.prefill_tokens_size() != prefills ||
        generation.prefill_samples_size() != prefills) {
      return Broken("entries' columns differ in length");
    }
    int before = launched;
    for (const EventLog::Stage& stage : generation.stages()) {
      for (const int length : {stage.wait_ns_size(), stage.compute_ns_size(),
                               stage.send_wait_ns_size(), stage.hop_ns_size()}) {
        if (length > before) return Broken("a micro-batch is where it never went");
        before = length;
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadSteps(const EventLog::Generation& generation) {
    int64_t launched_ns = 0;
    int entry = 0;
    int prefill = 0;
    int64_t request = 0;
    absl::flat_hash_map<int32_t, int64_t> end;
    for (int id = 0; id < generation.launched_ns_size(); ++id) {
      if (!Advance(generation.launched_ns(id), kMaxNs, launched_ns)) {
        return Broken(absl::StrCat("micro-batch ", id, "'s launch is out of range"));
      }
      RunEvents::Step step{.generation = events_.generations,
                           .id = id,
                           .launched_ns = launched_ns,
                           .first_entry = static_cast<int64_t>(events_.entries.size()),
                           .decodes = static_cast<int32_t>(generation.decodes(id)),
                           .prefills = static_cast<int32_t>(generation.prefills(id)),
                           .prefill_tokens = 0};
      for (int i = 0; i < step.decodes + step.prefills; ++i, ++entry) {
        const bool decode = i < step.decodes;
        if (!Advance(generation.request(entry), kMaxNs, request)) {
          return Broken(absl::StrCat("micro-batch ", id, " holds a request out of range"));
        }
        const auto row = row_.find(request);
        if (row == row_.end()) {
          return Broken(absl::StrCat("micro-batch ", id, " holds request ", request,
                                     ", which never arrived"));
        }
        int64_t& first_token = end[row->second];
        const int64_t tokens = decode ? 1 : generation.prefill_tokens(prefill);
        if (!Advance(generation.first_token(entry), kMaxCount, first_token) || first_token < 0 ||
            tokens < 1 || tokens > kMaxCount - first_token) {
          return Broken(absl::StrCat("micro-batch ", id, " holds tokens out of range"));
        }
        events_.entries.push_back({.request = row->second,
                                   .first_token = static_cast<int32_t>(first_token),
                                   .tokens = static_cast<int32_t>(tokens),
                                   .decode = decode,
                                   .samples = decode || generation.prefill_samples(prefill)});
        first_token += tokens;
        if (decode) continue;
        step.prefill_tokens += tokens;
        ++prefill;
      }
      events_.steps.push_back(step);
      if (!ReadTimes(generation, id, launched_ns)) {
        return Broken(absl::StrCat("micro-batch ", id, "'s times are out of range"));
      }
    }
    return absl::OkStatus();
  }

  bool ReadTimes(const EventLog::Generation& generation, int id, int64_t launched_ns) {
    int64_t ready_ns = launched_ns;
    for (const EventLog::Stage& stage : generation.stages()) {
      RunEvents::StageTimes times{.ready_ns = ready_ns};
      if (!ReadTime(stage.wait_ns(), id, times.ready_ns, times.started_ns) ||
          !ReadTime(stage.compute_ns(), id, times.started_ns, times.computed_ns) ||
          !ReadTime(stage.send_wait_ns(), id, times.computed_ns, times.sent_ns) ||
          !ReadTime(stage.hop_ns(), id, times.sent_ns, times.delivered_ns)) {
        return false;
      }
      ready_ns = times.delivered_ns;
      events_.times.push_back(times);
    }
    return true;
  }

  const EventLog& log_;
  RunEvents events_;
  absl::flat_hash_map<RequestId, int32_t> row_;
};

}  // namespace

absl::StatusOr<RunEvents> ReadEvents(absl::string_view log, int stages) {
  google::protobuf::io::ArrayInputStream bytes(log.data(), static_cast<int>(log.size()));
  google::protobuf::io::GzipInputStream gzip(&bytes);
  EventLog parsed;
  if (log.empty() || !parsed.ParseFromZeroCopyStream(&gzip) || gzip.ZlibErrorCode() < 0) {
    return Broken("they are not a gzipped EventLog");
  }
  return Reader(parsed, stages).Read();
}

}  // namespace fabricast
