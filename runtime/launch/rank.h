// Which process of a pipeline is this one? The launcher that started it says so in the environment.
//
//   flags        --rank, where the user or a process of ours says it. They win over all that
//   follow. mpirun       Open MPI:   OMPI_COMM_WORLD_{RANK,SIZE,LOCAL_RANK,LOCAL_SIZE}
//                MPICH, PMI: PMI_{RANK,SIZE}, MPI_LOCALRANKID, MPI_LOCALNRANKS
//   torchrun     RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT
//   srun         SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, SLURM_STEP_NODELIST, ...
//   Kubernetes   JOB_COMPLETION_INDEX of an indexed job, if FABRICAST_HEAD or --head is there too
//
// The earlier in this list, the nearer to this process: mpirun and torchrun start theirs through
// Slurm's or Kubernetes', whose variables are then still there and are about something else.
// Between mpirun and torchrun nobody can tell, so if both are there they must agree. Variables that
// are empty are as good as unset.
//
// A world of one process is no launcher: a program in `srun --pty bash` or a notebook's pod runs as
// if it was started by hand. Nor is what surrounds a launcher: a batch script of Slurm's has
// SLURM_PROCID and SLURM_NTASKS, but `srun` in it gives SLURM_STEP_NUM_TASKS. Every pod of an
// indexed job has an index, and only who names the head wants them to be one pipeline.
// FABRICAST_HEAD alone makes no pipeline; --head alone is an error.
#ifndef FABRICAST_RUNTIME_LAUNCH_RANK_H_
#define FABRICAST_RUNTIME_LAUNCH_RANK_H_

#include <map>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fabricast {

using Environment = std::map<std::string, std::string>;

// Of this process. Not safe beside a setenv in another thread.
Environment ThisEnvironment();

struct PlaceFlags {
  std::optional<int> rank;
  std::string head;  // host, host:port; "": not given
};

struct Place {
  int rank = 0;             // 0 is the head
  std::optional<int> size;  // of the world; unknown to flags and Kubernetes: the plan has it
  // Among the processes of this host, where the launcher tells. Rank is within size for both.
  std::optional<int> local_rank;
  std::optional<int> local_size;
  std::string launcher;  // "flags", "mpirun", "torchrun", "srun", "Kubernetes"
  // Where rank 0 is, as host or host:port (runtime/launch/local_addresses.h parses it): --head,
  // else FABRICAST_HEAD, else what the launcher tells:
  //   torchrun   (also beside mpirun) MASTER_ADDR, and MASTER_PORT unless torchrun's own agent
  //   listens there srun       the first node of the step, where task 0 runs unless the tasks are
  //   dealt by
  //              --distribution=arbitrary; not the node that srun was called on
  //   any        127.0.0.1 if all processes are on this host
  // Nothing where mpirun spans hosts: it does not say which one has rank 0.
  std::optional<std::string> head;
};

// Nothing if no launcher started this process. kInvalidArgument names the variable or flag, its
// value and the mend. A pure function.
absl::StatusOr<std::optional<Place>> FindPlace(const Environment& environment,
                                               const PlaceFlags& flags);

// The first host of Slurm's compressed list: "node03" of "node[03-05,07],login". kInvalidArgument
// quotes the list.
absl::StatusOr<std::string> FirstHost(absl::string_view hosts);

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_LAUNCH_RANK_H_
