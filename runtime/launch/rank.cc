#include "runtime/launch/rank.h"

#include <unistd.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace fabricast {
namespace {

// More processes than any pipeline has; what is larger is a mistake.
constexpr int kMaxProcesses = 1'000'000;
constexpr char kHeadVariable[] = "FABRICAST_HEAD";

// Null where it is not set. An empty one is not set: `RANK= fabricast ...` hides a variable.
const std::string* Find(const Environment& environment, const std::string& name) {
  const auto found = environment.find(name);
  return found == environment.end() || found->second.empty() ? nullptr : &found->second;
}

std::optional<int> ParseCount(absl::string_view text) {
  int value = 0;
  if (text.empty() || !absl::ascii_isdigit(text[0]) || !absl::SimpleAtoi(text, &value) ||
      !absl::ascii_isdigit(text.back()) || value > kMaxProcesses) {
    return std::nullopt;
  }
  return value;
}

absl::StatusOr<std::optional<int>> ReadCount(const Environment& environment,
                                             const std::string& name) {
  const std::string* const text = Find(environment, name);
  if (text == nullptr) return std::optional<int>();
  const std::optional<int> value = ParseCount(*text);
  if (!value.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is \"", *text, "\", and a launcher sets a whole number of 0 to ",
                     kMaxProcesses, "; unset it, or give --rank"));
  }
  return value;
}

// What a launcher calls what it tells.
struct Variables {
  const char* launcher;
  const char* rank;
  const char* size;
  const char* local_rank;
  const char* local_size;  // null where there is none
};

constexpr Variables kOpenMpi = {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                                "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"};
constexpr Variables kPmi = {"mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"};
constexpr Variables kTorchrun = {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK",
                                 "LOCAL_WORLD_SIZE"};
constexpr Variables kSlurm = {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID",
                              nullptr};

struct Numbers {
  int rank = 0;
  int size = 0;
  std::optional<int> local_rank;
  std::optional<int> local_size;
};

absl::Status CheckWithin(const char* rank_name, int rank, const char* size_name, int size) {
  if (rank < size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(rank_name, " is ", rank, ", and ", size_name,
                                                 " of ", size, " has ranks 0 to ", size - 1,
                                                 "; unset both, or give --rank"));
}

// Nothing if neither rank nor size is there.
absl::StatusOr<std::optional<Numbers>> ReadNumbers(const Environment& environment,
                                                   const Variables& variables) {
  if (Find(environment, variables.rank) == nullptr &&
      Find(environment, variables.size) == nullptr) {
    return std::optional<Numbers>();
  }
  Numbers numbers;
  const std::pair<const char*, int*> required[] = {{variables.rank, &numbers.rank},
                                                   {variables.size, &numbers.size}};
  for (const auto& [name, number] : required) {
    const absl::StatusOr<std::optional<int>> value = ReadCount(environment, name);
    if (!value.ok()) return value.status();
    if (!value->has_value()) {
      const char* const other = name == variables.rank ? variables.size : variables.rank;
      return absl::InvalidArgumentError(absl::StrCat(other, " is ", environment.at(other), ", and ",
                                                     name, " is not set; ", variables.launcher,
                                                     " sets both: unset it, or give --rank"));
    }
    *number = **value;
  }
  if (numbers.size == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(variables.size, " is 0; unset it, or give --rank"));
  }
  absl::Status within = CheckWithin(variables.rank, numbers.rank, variables.size, numbers.size);
  if (!within.ok()) return within;

  const std::pair<const char*, std::optional<int>*> optional[] = {
      {variables.local_rank, &numbers.local_rank}, {variables.local_size, &numbers.local_size}};
  for (const auto& [name, number] : optional) {
    if (name == nullptr) continue;
    const absl::StatusOr<std::optional<int>> value = ReadCount(environment, name);
    if (!value.ok()) return value.status();
    *number = *value;
  }
  if (numbers.local_size.has_value()) {
    if (*numbers.local_size > numbers.size) {
      return absl::InvalidArgumentError(
          absl::StrCat(variables.local_size, " is ", *numbers.local_size, ", more than ",
                       variables.size, ", which is ", numbers.size, "; unset it"));
    }
    if (numbers.local_rank.has_value()) {
      within = CheckWithin(variables.local_rank, *numbers.local_rank, variables.local_size,
                           *numbers.local_size);
      if (!within.ok()) return within;
    }
  }
  return std::optional<Numbers>(numbers);
}

// How many tasks the step has on node `node`: 2 of "2(x3),1" for nodes 0 to 2.
absl::StatusOr<int> TasksOfNode(const std::string& tasks_per_node, int node) {
  int first = 0;  // node of the next part
  for (absl::string_view part : absl::StrSplit(tasks_per_node, ',')) {
    const std::pair<absl::string_view, absl::string_view> halves =
        absl::StrSplit(part, absl::MaxSplits("(x", 1));
    absl::string_view times = halves.second;
    const bool repeated = absl::ConsumeSuffix(&times, ")");
    const std::optional<int> tasks = ParseCount(halves.first);
    const std::optional<int> nodes = repeated ? ParseCount(times) : 1;
    if (!tasks.has_value() || !nodes.has_value() || (!repeated && part != halves.first)) break;
    if (node - first < *nodes) return *tasks;
    first += *nodes;
  }
  return absl::InvalidArgumentError(absl::StrCat("SLURM_STEP_TASKS_PER_NODE is \"", tasks_per_node,
                                                 "\", which has no node ", node,
                                                 " (SLURM_NODEID); unset it, or give --rank"));
}

absl::Status AddSlurmsLocalSize(const Environment& environment, Numbers& numbers) {
  const absl::StatusOr<std::optional<int>> node = ReadCount(environment, "SLURM_NODEID");
  if (!node.ok()) return node.status();
  const std::string* const tasks = Find(environment, "SLURM_STEP_TASKS_PER_NODE");
  if (!node->has_value() || tasks == nullptr) return absl::OkStatus();
  const absl::StatusOr<int> local_size = TasksOfNode(*tasks, **node);
  if (!local_size.ok()) return local_size.status();
  numbers.local_size = *local_size;
  if (!numbers.local_rank.has_value()) return absl::OkStatus();
  return CheckWithin(kSlurm.local_rank, *numbers.local_rank, "SLURM_STEP_TASKS_PER_NODE",
                     *local_size);
}

absl::StatusOr<std::optional<std::string>> SlurmsHead(const Environment& environment) {
  const std::string* const nodes = Find(environment, "SLURM_STEP_NODELIST");
  if (nodes == nullptr) return std::optional<std::string>();
  absl::StatusOr<std::string> first = FirstHost(*nodes);
  if (!first.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("SLURM_STEP_NODELIST: ", first.status().message(), "; give --head"));
  }
  return std::optional<std::string>(*std::move(first));
}

std::optional<std::string> TorchrunsHead(const Environment& environment) {
  const std::string* const host = Find(environment, "MASTER_ADDR");
  if (host == nullptr) return std::nullopt;
  const std::string* const port = Find(environment, "MASTER_PORT");
  const std::string* const agent = Find(environment, "TORCHELASTIC_USE_AGENT_STORE");
  const bool taken = agent != nullptr && absl::EqualsIgnoreCase(*agent, "true");
  if (port == nullptr || taken) return *host;
  // An IPv6 address needs brackets beside a port.
  return host->find(':') != std::string::npos && host->front() != '['
             ? absl::StrCat("[", *host, "]:", *port)
             : absl::StrCat(*host, ":", *port);
}

bool Same(const Numbers& a, const Numbers& b) { return a.rank == b.rank && a.size == b.size; }

// Of the launchers that tell a rank and a size.
absl::StatusOr<std::optional<Place>> FindInWorld(const Environment& environment, bool head_given) {
  const absl::StatusOr<std::optional<Numbers>> open_mpi = ReadNumbers(environment, kOpenMpi);
  if (!open_mpi.ok()) return open_mpi.status();
  absl::StatusOr<std::optional<Numbers>> pmi = ReadNumbers(environment, kPmi);
  if (!pmi.ok()) return pmi.status();
  const absl::StatusOr<std::optional<Numbers>> torchrun = ReadNumbers(environment, kTorchrun);
  if (!torchrun.ok()) return torchrun.status();
  absl::StatusOr<std::optional<Numbers>> slurm = std::optional<Numbers>();
  // What Slurm sets outside of a step is about no process.
  if (Find(environment, kSlurm.size) != nullptr) slurm = ReadNumbers(environment, kSlurm);
  if (!slurm.ok()) return slurm.status();
  // `srun --mpi=pmi2` also speaks PMI.
  if (pmi->has_value() && slurm->has_value() && Same(**pmi, **slurm)) pmi->reset();

  const std::pair<const Variables*, const std::optional<Numbers>*> nearest[] = {
      {&kOpenMpi, &*open_mpi}, {&kPmi, &*pmi}, {&kTorchrun, &*torchrun}};
  const Variables* chosen = nullptr;
  Numbers numbers;
  for (const auto& [variables, found] : nearest) {
    if (!found->has_value()) continue;
    if (chosen == nullptr) {
      chosen = variables;
      numbers = **found;
    } else if (!Same(**found, numbers)) {
      return absl::InvalidArgumentError(absl::StrCat(
          chosen->rank, " is ", numbers.rank, " of ", numbers.size, " (", chosen->size, "), and ",
          variables->rank, " is ", (*found)->rank, " of ", (*found)->size, " (", variables->size,
          "); unset those of the launcher that did not start this process, or give --rank"));
    }
  }
  Place place;
  if (torchrun->has_value()) place.head = TorchrunsHead(environment);
  if (chosen == nullptr) {
    if (!slurm->has_value()) return std::optional<Place>();
    chosen = &kSlurm;
    numbers = **slurm;
    const absl::Status added = AddSlurmsLocalSize(environment, numbers);
    if (!added.ok()) return added;
    if (!head_given) {
      absl::StatusOr<std::optional<std::string>> head = SlurmsHead(environment);
      if (!head.ok()) return head.status();
      place.head = *std::move(head);
    }
  }
  place.rank = numbers.rank;
  place.size = numbers.size;
  place.local_rank = numbers.local_rank;
  place.local_size = numbers.local_size;
  place.launcher = chosen->launcher;
  if (!place.head.has_value() && place.local_size == place.size) place.head = "127.0.0.1";
  return std::optional<Place>(std::move(place));
}

absl::StatusOr<std::optional<Place>> FindInKubernetes(const Environment& environment,
                                                      bool head_given) {
  const absl::StatusOr<std::optional<int>> index = ReadCount(environment, "JOB_COMPLETION_INDEX");
  if (!head_given) return std::optional<Place>();
  if (!index.ok()) return index.status();
  if (!index->has_value()) return std::optional<Place>();
  Place place;
  place.rank = **index;
  place.launcher = "Kubernetes";
  return std::optional<Place>(std::move(place));
}

}  // namespace

Environment ThisEnvironment() {
  Environment environment;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::pair<std::string, std::string> variable =
        absl::StrSplit(*entry, absl::MaxSplits('=', 1));
    environment.insert(variable);
  }
  return environment;
}

absl::StatusOr<std::optional<Place>> FindPlace(const Environment& environment,
                                               const PlaceFlags& flags) {
  const std::string* const head_variable = Find(environment, kHeadVariable);
  std::optional<std::string> head;
  if (head_variable != nullptr) head = *head_variable;
  if (!flags.head.empty()) head = flags.head;

  if (flags.rank.has_value()) {
    if (*flags.rank < 0 || *flags.rank > kMaxProcesses) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--rank is ", *flags.rank, ", and ranks are 0 to ", kMaxProcesses, ": 0 is the head"));
    }
    if (*flags.rank > 0 && !head.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--rank is ", *flags.rank, ", and where rank 0 is is not known: give --head HOST:PORT"));
    }
    Place place;
    place.rank = *flags.rank;
    place.launcher = "flags";
    place.head = std::move(head);
    return std::optional<Place>(std::move(place));
  }

  absl::StatusOr<std::optional<Place>> place = FindInWorld(environment, head.has_value());
  if (!place.ok()) return place;
  if (!place->has_value()) place = FindInKubernetes(environment, head.has_value());
  if (!place.ok()) return place;
  if (!place->has_value()) {
    if (flags.head.empty()) return std::optional<Place>();
    return absl::InvalidArgumentError(absl::StrCat(
        "--head is ", flags.head, ", and no launcher says which process this is: give --rank too"));
  }
  if ((*place)->size == 1) return std::optional<Place>();
  if (head.has_value()) (*place)->head = std::move(head);
  return place;
}

absl::StatusOr<std::string> FirstHost(absl::string_view hosts) {
  const absl::Status malformed = absl::InvalidArgumentError(
      absl::StrCat("\"", hosts, "\" is no list of hosts such as node[01-03,07],login"));
  std::string host;
  // Within brackets, all but the first number is left out.
  bool in_brackets = false;
  bool in_first = false;
  bool digits = false;
  for (const char c : hosts) {
    if (in_brackets) {
      if (absl::ascii_isdigit(c)) {
        digits = true;
        if (in_first) host.push_back(c);
      } else if (digits && (c == ']' || c == ',' || c == '-')) {
        in_brackets = c != ']';
        in_first = digits = false;
      } else {
        return malformed;
      }
    } else if (c == '[') {
      in_brackets = in_first = true;
      digits = false;
    } else if (c == ',') {
      break;
    } else if (c == ']' || absl::ascii_isspace(c)) {
      return malformed;
    } else {
      host.push_back(c);
    }
  }
  if (host.empty() || in_brackets) return malformed;
  return host;
}

}  // namespace fabricast
