#include "runtime/launch/rank.h"

#include <stdlib.h>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// All fields in one line, "-" for what is unknown.
std::string Describe(const Place& place) {
  const auto number = [](const std::optional<int>& value) {
    return value.has_value() ? absl::StrCat(*value) : std::string("-");
  };
  return absl::StrCat(place.launcher, " ", place.rank, "/", number(place.size), " local ",
                      number(place.local_rank), "/", number(place.local_size), " head ",
                      place.head.value_or("-"));
}

// The place, "none", or the error.
std::string Find(const Environment& environment, const PlaceFlags& flags = {}) {
  const absl::StatusOr<std::optional<Place>> place = FindPlace(environment, flags);
  if (!place.ok()) {
    EXPECT_EQ(place.status().code(), absl::StatusCode::kInvalidArgument);
    return absl::StrCat("error: ", place.status().message());
  }
  return place->has_value() ? Describe(**place) : "none";
}

Environment operator+(Environment a, const Environment& b) {
  for (const auto& [name, value] : b) a[name] = value;
  return a;
}

Environment OpenMpi(int rank, int size) {
  return {{"OMPI_COMM_WORLD_RANK", absl::StrCat(rank)},
          {"OMPI_COMM_WORLD_SIZE", absl::StrCat(size)}};
}
Environment Torchrun(int rank, int size) {
  return {{"RANK", absl::StrCat(rank)}, {"WORLD_SIZE", absl::StrCat(size)}};
}
Environment Pmi(int rank, int size) {
  return {{"PMI_RANK", absl::StrCat(rank)}, {"PMI_SIZE", absl::StrCat(size)}};
}
Environment Slurm(int rank, int size) {
  return {{"SLURM_PROCID", absl::StrCat(rank)},
          {"SLURM_NTASKS", absl::StrCat(size)},
          {"SLURM_STEP_NUM_TASKS", absl::StrCat(size)},
          {"SLURM_STEP_NODELIST", "node[07-09]"},
          {"SLURM_LAUNCH_NODE_IPADDR", "10.9.9.9"}};
}

TEST(PlaceTest, NoLauncherNoPlace) {
  EXPECT_EQ(Find({}), "none");
  EXPECT_EQ(Find({{"PATH", "/bin"}, {"FABRICAST_HEAD", "a:1"}}), "none");
  EXPECT_EQ(Find({{"RANK", ""}, {"WORLD_SIZE", ""}}), "none");
}

TEST(PlaceTest, OpenMpiSaysItsRanks) {
  EXPECT_EQ(Find(OpenMpi(2, 3)), "mpirun 2/3 local -/- head -");
  EXPECT_EQ(Find(OpenMpi(2, 4) + Environment{{"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                                             {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}}),
            "mpirun 2/4 local 0/2 head -");
}

TEST(PlaceTest, ProcessesThatAreAllOnOneHostFindTheHeadThere) {
  EXPECT_EQ(Find(OpenMpi(1, 2) + Environment{{"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}}),
            "mpirun 1/2 local -/2 head 127.0.0.1");
}

TEST(PlaceTest, MpichSaysItsRanks) {
  EXPECT_EQ(Find(Pmi(0, 3) + Environment{{"MPI_LOCALRANKID", "0"}, {"MPI_LOCALNRANKS", "3"}}),
            "mpirun 0/3 local 0/3 head 127.0.0.1");
}

TEST(PlaceTest, TorchrunSaysWhereItsMasterIs) {
  const Environment torchrun =
      Torchrun(3, 4) + Environment{{"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"}};
  EXPECT_EQ(Find(torchrun), "torchrun 3/4 local 1/2 head -");
  EXPECT_EQ(Find(torchrun + Environment{{"MASTER_ADDR", "n1"}}), "torchrun 3/4 local 1/2 head n1");
  EXPECT_EQ(Find(torchrun + Environment{{"MASTER_ADDR", "n1"}, {"MASTER_PORT", "29500"}}),
            "torchrun 3/4 local 1/2 head n1:29500");
  EXPECT_EQ(Find(torchrun + Environment{{"MASTER_ADDR", "fd00::1"}, {"MASTER_PORT", "29500"}}),
            "torchrun 3/4 local 1/2 head [fd00::1]:29500");
  EXPECT_EQ(Find(torchrun + Environment{{"MASTER_PORT", "29500"}}),
            "torchrun 3/4 local 1/2 head -");
}

TEST(PlaceTest, ThePortOfTorchrunsAgentIsNotOurs) {
  const Environment torchrun =
      Torchrun(1, 4) + Environment{{"MASTER_ADDR", "n1"}, {"MASTER_PORT", "29500"}};
  EXPECT_EQ(Find(torchrun + Environment{{"TORCHELASTIC_USE_AGENT_STORE", "True"}}),
            "torchrun 1/4 local -/- head n1");
  EXPECT_EQ(Find(torchrun + Environment{{"TORCHELASTIC_USE_AGENT_STORE", "False"}}),
            "torchrun 1/4 local -/- head n1:29500");
}

TEST(PlaceTest, SlurmsHeadIsOnTheFirstNodeOfTheStep) {
  EXPECT_EQ(Find(Slurm(1, 3)), "srun 1/3 local -/- head node07");
}

TEST(PlaceTest, SlurmTellsTheTasksOfEachNode) {
  const auto local = [](const std::string& node) {
    return Find(Slurm(1, 9) + Environment{{"SLURM_LOCALID", "0"},
                                          {"SLURM_NODEID", node},
                                          {"SLURM_STEP_TASKS_PER_NODE", "3,2(x2),1"}});
  };
  EXPECT_EQ(local("0"), "srun 1/9 local 0/3 head node07");
  EXPECT_EQ(local("1"), "srun 1/9 local 0/2 head node07");
  EXPECT_EQ(local("2"), "srun 1/9 local 0/2 head node07");
  EXPECT_EQ(local("3"), "srun 1/9 local 0/1 head node07");
  EXPECT_EQ(local("4"),
            "error: SLURM_STEP_TASKS_PER_NODE is \"3,2(x2),1\", which has no node 4 "
            "(SLURM_NODEID); unset it, or give --rank");
  for (const char* const malformed : {"x", "2(x", "2(xy)", "2(x1", "2x1)", "(x2)"}) {
    EXPECT_THAT(Find(Slurm(1, 9) +
                     Environment{{"SLURM_NODEID", "0"}, {"SLURM_STEP_TASKS_PER_NODE", malformed}}),
                HasSubstr(absl::StrCat("SLURM_STEP_TASKS_PER_NODE is \"", malformed, "\"")));
  }
}

TEST(PlaceTest, ABatchScriptOfSlurmsIsNoTask) {
  EXPECT_EQ(Find({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "3"}, {"SLURM_NODEID", "0"}}), "none");
}

TEST(PlaceTest, AWorldOfOneIsNoLauncher) {
  EXPECT_EQ(Find(OpenMpi(0, 1)), "none");
  EXPECT_EQ(Find(Pmi(0, 1)), "none");
  EXPECT_EQ(Find(Torchrun(0, 1)), "none");
  EXPECT_EQ(Find(Slurm(0, 1)), "none");
  EXPECT_EQ(Find(Slurm(0, 1), {.rank = std::nullopt, .head = "a:1"}), "none");
  // Even within a larger one: its own launcher is nearer.
  EXPECT_EQ(Find(OpenMpi(0, 1) + Slurm(2, 3)), "none");
}

TEST(PlaceTest, APodsIndexIsARankWhereTheHeadIsNamed) {
  const Environment pod = {{"JOB_COMPLETION_INDEX", "2"}};
  EXPECT_EQ(Find(pod), "none");
  EXPECT_EQ(Find(pod + Environment{{"FABRICAST_HEAD", "job-0.job:1"}}),
            "Kubernetes 2/- local -/- head job-0.job:1");
  EXPECT_EQ(Find(pod, {.rank = std::nullopt, .head = "job-0.job:1"}),
            "Kubernetes 2/- local -/- head job-0.job:1");
  EXPECT_EQ(Find({{"JOB_COMPLETION_INDEX", "-1"}, {"FABRICAST_HEAD", "a"}}),
            "error: JOB_COMPLETION_INDEX is \"-1\", and a launcher sets a whole number of 0 to "
            "1000000; unset it, or give --rank");
  EXPECT_EQ(Find({{"JOB_COMPLETION_INDEX", "-1"}}), "none");
}

TEST(PlaceTest, TheNearerLauncherCounts) {
  EXPECT_EQ(Find(OpenMpi(2, 3) + Slurm(0, 2)), "mpirun 2/3 local -/- head -");
  EXPECT_EQ(Find(Torchrun(5, 8) + Slurm(1, 2)), "torchrun 5/8 local -/- head -");
  EXPECT_EQ(Find(Pmi(2, 3) + Slurm(0, 2)), "mpirun 2/3 local -/- head -");
  const Environment pod = {{"JOB_COMPLETION_INDEX", "0"}, {"FABRICAST_HEAD", "a:1"}};
  EXPECT_EQ(Find(OpenMpi(2, 3) + pod), "mpirun 2/3 local -/- head a:1");
  EXPECT_EQ(Find(Slurm(2, 3) + pod), "srun 2/3 local -/- head a:1");
  EXPECT_EQ(Find(OpenMpi(0, 1) + pod), "none");
}

TEST(PlaceTest, SlurmsOwnPmiIsSlurm) {
  EXPECT_EQ(Find(Pmi(1, 3) + Slurm(1, 3)), "srun 1/3 local -/- head node07");
  // What srun started is torchrun's agent or mpirun's daemon.
  EXPECT_EQ(Find(Torchrun(5, 8) + Pmi(1, 2) + Slurm(1, 2)), "torchrun 5/8 local -/- head -");
  EXPECT_EQ(Find(OpenMpi(5, 8) + Pmi(1, 2) + Slurm(1, 2)), "mpirun 5/8 local -/- head -");
}

TEST(PlaceTest, MpirunAndTorchrunMustAgree) {
  EXPECT_EQ(Find(OpenMpi(1, 3) + Torchrun(1, 3) + Environment{{"MASTER_ADDR", "n1"}}),
            "mpirun 1/3 local -/- head n1");
  EXPECT_EQ(Find(OpenMpi(1, 3) + Torchrun(2, 3)),
            "error: OMPI_COMM_WORLD_RANK is 1 of 3 (OMPI_COMM_WORLD_SIZE), and RANK is 2 of 3 "
            "(WORLD_SIZE); unset those of the launcher that did not start this process, or give "
            "--rank");
  EXPECT_THAT(Find(OpenMpi(1, 3) + Torchrun(1, 4)),
              AllOf(HasSubstr("1 of 3"), HasSubstr("1 of 4")));
  EXPECT_THAT(Find(OpenMpi(1, 3) + Pmi(0, 3)), HasSubstr("PMI_RANK is 0 of 3"));
  EXPECT_THAT(Find(Pmi(0, 3) + Torchrun(2, 3)), HasSubstr("RANK is 2 of 3"));
}

TEST(PlaceTest, FlagsWinOverLaunchers) {
  EXPECT_EQ(Find({}, {.rank = 2, .head = "a:1"}), "flags 2/- local -/- head a:1");
  EXPECT_EQ(Find({}, {.rank = 0, .head = ""}), "flags 0/- local -/- head -");
  EXPECT_EQ(Find(OpenMpi(1, 3) + Torchrun(2, 3), {.rank = 0, .head = ""}),
            "flags 0/- local -/- head -");
  EXPECT_EQ(Find({{"OMPI_COMM_WORLD_RANK", "x"}}, {.rank = 0, .head = ""}),
            "flags 0/- local -/- head -");
  EXPECT_EQ(Find({{"FABRICAST_HEAD", "b:2"}}, {.rank = 1, .head = ""}),
            "flags 1/- local -/- head b:2");
}

TEST(PlaceTest, TheHeadsFlagWinsOverItsVariableAndThatOverTheLauncher) {
  const Environment torchrun = Torchrun(1, 2) + Environment{{"MASTER_ADDR", "c"}};
  EXPECT_EQ(Find(torchrun), "torchrun 1/2 local -/- head c");
  const Environment both = torchrun + Environment{{"FABRICAST_HEAD", "b:2"}};
  EXPECT_EQ(Find(both), "torchrun 1/2 local -/- head b:2");
  EXPECT_EQ(Find(both, {.rank = std::nullopt, .head = "a:1"}), "torchrun 1/2 local -/- head a:1");
}

TEST(PlaceTest, FlagsThatAreNoPlaceAreErrors) {
  EXPECT_EQ(Find({}, {.rank = -1, .head = "a:1"}),
            "error: --rank is -1, and ranks are 0 to 1000000: 0 is the head");
  EXPECT_THAT(Find({}, {.rank = 1'000'001, .head = "a:1"}), HasSubstr("--rank is 1000001"));
  EXPECT_EQ(Find({}, {.rank = 2, .head = ""}),
            "error: --rank is 2, and where rank 0 is is not known: give --head HOST:PORT");
  EXPECT_EQ(Find({}, {.rank = std::nullopt, .head = "a:1"}),
            "error: --head is a:1, and no launcher says which process this is: give --rank too");
}

TEST(PlaceTest, NumbersThatAreNoneNameTheirVariable) {
  for (const char* const text :
       {"-1", "+1", " 1", "1 ", "1.5", "x", "0x1", "1000001", "99999999999999999999"}) {
    EXPECT_EQ(Find(Environment{{"OMPI_COMM_WORLD_RANK", text}, {"OMPI_COMM_WORLD_SIZE", "3"}}),
              absl::StrCat("error: OMPI_COMM_WORLD_RANK is \"", text,
                           "\", and a launcher sets a whole number of 0 to 1000000; unset it, or "
                           "give --rank"));
  }
  EXPECT_THAT(Find({{"PMI_RANK", "0"}, {"PMI_SIZE", "many"}}), HasSubstr("PMI_SIZE is \"many\""));
  EXPECT_THAT(Find(Torchrun(0, 2) + Environment{{"LOCAL_RANK", "x"}}),
              HasSubstr("LOCAL_RANK is \"x\""));
  EXPECT_THAT(Find(Slurm(0, 2) + Environment{{"SLURM_LOCALID", "x"}}),
              HasSubstr("SLURM_LOCALID is \"x\""));
}

TEST(PlaceTest, RanksAreWithinTheirWorld) {
  EXPECT_EQ(Find(OpenMpi(3, 3)),
            "error: OMPI_COMM_WORLD_RANK is 3, and OMPI_COMM_WORLD_SIZE of 3 has ranks 0 to 2; "
            "unset both, or give --rank");
  EXPECT_EQ(Find(OpenMpi(0, 0)), "error: OMPI_COMM_WORLD_SIZE is 0; unset it, or give --rank");
  EXPECT_THAT(Find(Torchrun(0, 4) + Environment{{"LOCAL_RANK", "2"}, {"LOCAL_WORLD_SIZE", "2"}}),
              HasSubstr("LOCAL_RANK is 2, and LOCAL_WORLD_SIZE of 2 has ranks 0 to 1"));
  EXPECT_THAT(Find(Torchrun(0, 4) + Environment{{"LOCAL_WORLD_SIZE", "5"}}),
              HasSubstr("LOCAL_WORLD_SIZE is 5, more than WORLD_SIZE, which is 4"));
  EXPECT_THAT(Find(Slurm(0, 4) + Environment{{"SLURM_LOCALID", "2"},
                                             {"SLURM_NODEID", "0"},
                                             {"SLURM_STEP_TASKS_PER_NODE", "2(x2)"}}),
              HasSubstr("SLURM_LOCALID is 2, and SLURM_STEP_TASKS_PER_NODE of 2"));
}

TEST(PlaceTest, HalfOfALauncherIsAnError) {
  EXPECT_EQ(Find({{"RANK", "1"}}),
            "error: RANK is 1, and WORLD_SIZE is not set; torchrun sets both: unset it, or give "
            "--rank");
  EXPECT_THAT(Find({{"WORLD_SIZE", "3"}}), HasSubstr("WORLD_SIZE is 3, and RANK is not set"));
  EXPECT_THAT(Find({{"OMPI_COMM_WORLD_SIZE", "3"}}), HasSubstr("OMPI_COMM_WORLD_RANK is not set"));
  EXPECT_THAT(Find({{"SLURM_STEP_NUM_TASKS", "3"}}), HasSubstr("SLURM_PROCID is not set"));
}

TEST(PlaceTest, AListOfNodesThatIsNoneMattersOnlyIfItIsNeeded) {
  const Environment slurm = Slurm(0, 2) + Environment{{"SLURM_STEP_NODELIST", "node[1"}};
  EXPECT_EQ(Find(slurm),
            "error: SLURM_STEP_NODELIST: \"node[1\" is no list of hosts such as "
            "node[01-03,07],login; give --head");
  EXPECT_EQ(Find(slurm, {.rank = std::nullopt, .head = "a"}), "srun 0/2 local -/- head a");
}

TEST(FirstHostTest, IsTheFirstOfEachBracket) {
  const auto first = [](const std::string& hosts) { return FirstHost(hosts).value_or("error"); };
  EXPECT_EQ(first("a"), "a");
  EXPECT_EQ(first("b,a"), "b");
  EXPECT_EQ(first("node[01-03,07],b"), "node01");
  EXPECT_EQ(first("node[7,1-3]"), "node7");
  EXPECT_EQ(first("node-1.example.org,b"), "node-1.example.org");
  EXPECT_EQ(first("rack[2-3]n[10-12]-ib,c"), "rack2n10-ib");
  EXPECT_EQ(first("n1[02]"), "n102");
  for (const char* const malformed : {"", ",a", "a[", "a[1", "a[]", "1[]", "a[1-", "a[,1]", "a[1,]",
                                      "a[x]", "a]", "a[[1]]", "a b", "a[1]]"}) {
    EXPECT_EQ(first(malformed), "error") << malformed;
  }
}

TEST(ThisEnvironmentTest, HoldsVariablesWholly) {
  ASSERT_EQ(setenv("FABRICAST_RANK_TEST", "a=b=c", 1), 0);
  ASSERT_EQ(setenv("FABRICAST_RANK_TEST_EMPTY", "", 1), 0);
  const Environment environment = ThisEnvironment();
  EXPECT_EQ(environment.at("FABRICAST_RANK_TEST"), "a=b=c");
  EXPECT_EQ(environment.at("FABRICAST_RANK_TEST_EMPTY"), "");
  EXPECT_EQ(environment.count("FABRICAST_RANK_TEST_NONE"), 0u);
}

}  // namespace
}  // namespace fabricast
