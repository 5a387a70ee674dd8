// Head and stages in one process, each stage on a thread of its own, with real streams between
// them. Processes that die are in failures_test.

#include "runtime/control/remote_stages.h"

#include <atomic>
#include <functional>
#include <thread>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/control/control.pb.h"
#include "runtime/control/stage_process.h"
#include "runtime/control/testing/stranger.h"
#include "runtime/control/testing/test_pipeline.h"
#include "runtime/engine/fake_executor.h"

namespace fabricast {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr char kToken[] = "a token that is long enough";

RemoteStagesOptions HeadOptions(int stages) {
  return TestHeadOptions(stages, SharedSecret(kToken));
}

// A stage on a thread.
class StageThread {
 public:
  StageThread(const std::string& head, int stage, int stages, FakeExecutor::Hook hook = nullptr) {
    options_.stage = stage;
    options_.head = head;
    options_.secret = SharedSecret(kToken);
    options_.fingerprints = TestFingerprints();
    options_.interrupted = &interrupted_;
    options_.interrupt_grace = absl::ZeroDuration();
    options_.load =
        [=, this](const control::Load& load) -> absl::StatusOr<std::unique_ptr<StageExecutor>> {
      ++loads_;
      loaded_ = load;
      return std::make_unique<FakeExecutor>(stage, stages, hook);
    };
  }
  ~StageThread() {
    Interrupt();
    Wait().IgnoreError();
  }

  StageProcessOptions& options() { return options_; }
  StageThread& Start() {
    thread_ = std::thread([this] { status_ = RunStageProcess(options_); });
    return *this;
  }
  void Interrupt() { interrupted_ = true; }
  absl::Status Wait() {
    if (thread_.joinable()) thread_.join();
    return status_;
  }
  int loads() const { return loads_; }
  const control::Load& loaded() const { return loaded_; }

 private:
  StageProcessOptions options_;
  std::atomic<bool> interrupted_ = false;
  std::atomic<int> loads_ = 0;
  control::Load loaded_;
  absl::Status status_;
  std::thread thread_;
};

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(RemoteStagesTest, StagesThatJoinInAnyOrderComputeWhatOneProcessDoes) {
  TestPipeline pipeline(HeadOptions(3));
  StageThread c(pipeline.address(), 2, 3), a(pipeline.address(), 0, 3), b(pipeline.address(), 1, 3);
  const RequestId early = pipeline.Submit({1, 2, 3}, 5);
  c.Start();
  a.Start();
  b.Start();
  EXPECT_EQ(*pipeline.Await(early), FakeContinuation({1, 2, 3}, 5));
  std::vector<RequestId> ids;
  for (int i = 0; i < 40; ++i) {
    ids.push_back(pipeline.Submit(std::vector<int32_t>(1 + i, i), 1 + i % 7));
  }
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(*pipeline.Await(ids[i]), FakeContinuation(std::vector<int32_t>(1 + i, i), 1 + i % 7));
  }
  EXPECT_EQ(b.loaded().first_layer(), 10);
  EXPECT_EQ(b.loaded().stages(), 3);
  EXPECT_THAT(pipeline.remote().Description(),
              ElementsAre(HasSubstr("stage 0 (host_a): process on "), HasSubstr("the head's clock"),
                          HasSubstr("stage 2 (host_c)")));
  const Result result = pipeline.engine().Finish();
  EXPECT_EQ(result.finished(), 41);
  ASSERT_EQ(result.hops_size(), 3);
  EXPECT_GT(result.hops(0).transfer_s(), 0);
  EXPECT_TRUE(a.Wait().ok()) << a.Wait();
  EXPECT_TRUE(b.Wait().ok()) << b.Wait();
  EXPECT_TRUE(c.Wait().ok()) << c.Wait();
}

TEST(RemoteStagesTest, AStageThatLeavesIsNamedAndMayComeBack) {
  TestPipeline pipeline(HeadOptions(2));
  StageThread first(pipeline.address(), 0, 2);
  first.Start();
  std::atomic<bool> hold = true;
  auto second = std::make_unique<StageThread>(pipeline.address(), 1, 2, [&](const Step& step) {
    if (step.micro_batch.id > 2) {
      while (hold) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return absl::OkStatus();
  });
  second->Start();
  const RequestId running = pipeline.Submit({7}, 50);
  pipeline.AwaitTokens(running, 1);
  std::vector<RequestId> waiting;
  // Eight run at a time; these wait for a place.
  for (int i = 0; i < 20; ++i) waiting.push_back(pipeline.Submit({i}, 3));
  second->Interrupt();
  const absl::StatusOr<std::vector<int32_t>> lost = pipeline.Await(running);
  hold = false;
  EXPECT_TRUE(absl::IsCancelled(second->Wait()));
  ASSERT_FALSE(lost.ok());
  EXPECT_EQ(lost.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(lost.status()), HasSubstr("stage 1 (host_b)"));
  second = std::make_unique<StageThread>(pipeline.address(), 1, 2);
  second->Start();
  int completed = 0;
  for (int i = 0; i < 20; ++i) {
    const absl::StatusOr<std::vector<int32_t>> tokens = pipeline.Await(waiting[i]);
    if (!tokens.ok()) {
      EXPECT_THAT(Message(tokens.status()), HasSubstr("stage 1 (host_b)"));
      continue;
    }
    ++completed;
    EXPECT_EQ(*tokens, FakeContinuation({i}, 3));
  }
  EXPECT_GE(completed, 12);
  EXPECT_EQ(*pipeline.Generate({9}, 4), FakeContinuation({9}, 4));
  EXPECT_EQ(first.loads(), 1);  // it kept its weights
}

TEST(RemoteStagesTest, AnErrorOfAnExecutorEndsWhatRanAndNothingElse) {
  TestPipeline pipeline(HeadOptions(2));
  std::atomic<bool> broken = true;
  StageThread first(pipeline.address(), 0, 2);
  StageThread second(pipeline.address(), 1, 2, [&](const Step& step) {
    if (broken && step.micro_batch.id == 3) {
      return absl::ResourceExhaustedError("no more KV blocks");
    }
    return absl::OkStatus();
  });
  first.Start();
  second.Start();
  const absl::StatusOr<std::vector<int32_t>> failed = pipeline.Generate({1}, 20);
  ASSERT_FALSE(failed.ok());
  EXPECT_THAT(Message(failed.status()),
              AllOf(HasSubstr("stage 1"), HasSubstr("no more KV blocks")));
  broken = false;
  EXPECT_EQ(*pipeline.Generate({1}, 20), FakeContinuation({1}, 20));
  EXPECT_EQ(second.loads(), 1);
}

TEST(RemoteStagesTest, AStageWithAnotherTokenIsRefusedAndDisturbsNobody) {
  TestPipeline pipeline(HeadOptions(1));
  StageThread wrong(pipeline.address(), 0, 1);
  wrong.options().secret = SharedSecret("quite another long token");
  const absl::Status status = wrong.Start().Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(Message(status), AllOf(HasSubstr("token"), HasSubstr("the same file")));
  StageThread right(pipeline.address(), 0, 1);
  right.Start();
  EXPECT_EQ(*pipeline.Generate({1}, 2), FakeContinuation({1}, 2));
}

TEST(RemoteStagesTest, AStageThatDoesNotFitIsRefusedAndNamedAtBothEnds) {
  const struct {
    std::function<void(StageProcessOptions&)> change;
    std::string said;
  } cases[] = {
      {[](auto& options) { options.version = "2"; }, "of version 2, the head of version 0."},
      {[](auto& options) { options.fingerprints["model"] = "cccccccccccc"; },
       "its model differs from the head's (SHA-256 cccccccc... there, aaaaaaaa... here)"},
      {[](auto& options) { options.fingerprints.erase("topology"); },
       "its topology differs from the head's (SHA-256 none... there"},
  };
  for (const auto& c : cases) {
    TestPipeline pipeline(HeadOptions(2));
    const RequestId waiting = pipeline.Submit({1}, 1);
    StageThread wrong(pipeline.address(), 1, 2);
    c.change(wrong.options());
    const absl::Status status = wrong.Start().Wait();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(Message(status), HasSubstr(c.said));
    const absl::StatusOr<std::vector<int32_t>> ended = pipeline.Await(waiting);
    ASSERT_FALSE(ended.ok());
    EXPECT_THAT(Message(ended.status()), AllOf(HasSubstr("stage 1 (host_b) ("), HasSubstr(c.said)));
  }
}

TEST(RemoteStagesTest, AStageThatThePlanLacksIsRefused) {
  TestPipeline pipeline(HeadOptions(2));
  StageThread wrong(pipeline.address(), 2, 3);
  EXPECT_THAT(Message(wrong.Start().Wait()),
              HasSubstr("there is no stage 2: the plan has stages 0 to 1"));
}

TEST(RemoteStagesTest, ASecondProcessOfAStageWaitsForThePlace) {
  TestPipeline pipeline(HeadOptions(1));
  auto first = std::make_unique<StageThread>(pipeline.address(), 0, 1);
  first->Start();
  EXPECT_EQ(*pipeline.Generate({1}, 2), FakeContinuation({1}, 2));
  StageThread second(pipeline.address(), 0, 1);
  second.options().join_timeout = absl::Milliseconds(300);
  const absl::Status status = second.Start().Wait();
  EXPECT_THAT(Message(status), HasSubstr("stage 0 is already here"));
  EXPECT_EQ(*pipeline.Generate({1}, 2), FakeContinuation({1}, 2));
  StageThread third(pipeline.address(), 0, 1);
  third.Start();
  first->Interrupt();
  EXPECT_TRUE(absl::IsCancelled(first->Wait()));
  EXPECT_EQ(pipeline.GenerateAgain({5}, 2), FakeContinuation({5}, 2));
  EXPECT_EQ(third.loads(), 1);
}

TEST(RemoteStagesTest, WhoIsMissingIsNamed) {
  RemoteStagesOptions options = HeadOptions(3);
  options.join_timeout = absl::Milliseconds(600);
  TestPipeline pipeline(options);
  StageThread second(pipeline.address(), 1, 3);
  second.Start();
  const absl::StatusOr<std::vector<int32_t>> ended = pipeline.Generate({1}, 1);
  ASSERT_FALSE(ended.ok());
  EXPECT_EQ(ended.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Message(ended.status()),
              AllOf(HasSubstr("after 0.6 s stage 0 (host_a) has not joined"),
                    HasSubstr("stage 2 (host_c) has not joined"),
                    HasSubstr("the head listens at 127.0.0.1:")));
  EXPECT_THAT(Message(ended.status()), ::testing::Not(HasSubstr("stage 1")));
  EXPECT_FALSE(pipeline.engine().status().ok());
}

TEST(RemoteStagesTest, AStageWithoutAHeadSaysWhereItLooked) {
  StageThread stage("127.0.0.1:1", 0, 1);
  stage.options().join_timeout = absl::Milliseconds(300);
  EXPECT_THAT(Message(stage.Start().Wait()), AllOf(HasSubstr("stage 0: no head at 127.0.0.1:1")));
}

TEST(RemoteStagesTest, AStageThatCannotLoadEndsTheRunAtBothEnds) {
  TestPipeline pipeline(HeadOptions(1));
  StageThread stage(pipeline.address(), 0, 1);
  stage.options().load =
      [](const control::Load&) -> absl::StatusOr<std::unique_ptr<StageExecutor>> {
    return absl::NotFoundError("model.safetensors is missing");
  };
  stage.Start();
  const absl::StatusOr<std::vector<int32_t>> ended = pipeline.Generate({1}, 1);
  EXPECT_THAT(Message(ended.status()), HasSubstr("stage 0 (host_a): model.safetensors is missing"));
  pipeline.engine().Finish();
  EXPECT_EQ(stage.Wait().code(), absl::StatusCode::kNotFound);
}

// As one whose GPU is lost with its first step.
class LostExecutor : public FakeExecutor {
 public:
  LostExecutor() : FakeExecutor(1, 2, [](const Step&) { return absl::InternalError("lost"); }) {}
  void Reset() override { lost_ = std::exchange(was_reset_, true); }
  absl::Status usable() const override {
    return lost_ ? absl::InternalError("GPU 1 is lost") : absl::OkStatus();
  }

 private:
  bool was_reset_ = false;  // at first, before anything was computed
  bool lost_ = false;
};

TEST(RemoteStagesTest, AStageOfNoUseAnyMoreEndsTheRunAtBothEnds) {
  TestPipeline pipeline(HeadOptions(2));
  StageThread a(pipeline.address(), 0, 2), b(pipeline.address(), 1, 2);
  b.options().load = [](const control::Load&) { return std::make_unique<LostExecutor>(); };
  a.Start();
  b.Start();
  EXPECT_THAT(Message(pipeline.Await(pipeline.Submit({1, 2}, 2)).status()), HasSubstr("lost"));
  EXPECT_THAT(Message(pipeline.Await(pipeline.Submit({1, 2}, 2)).status()),
              AllOf(HasSubstr("stage 1"), HasSubstr("GPU 1 is lost")));
  pipeline.engine().Finish();
  EXPECT_THAT(Message(b.Wait()), HasSubstr("GPU 1 is lost"));
}

TEST(RemoteStagesTest, AnAddressThatIsNotOursIsNamed) {
  RemoteStagesOptions options = HeadOptions(1);
  options.ip = "203.0.113.7";
  const absl::Status status = RemoteStages::Listen(options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Message(status), HasSubstr("cannot listen at 203.0.113.7:0"));
}

TEST(RemoteStagesTest, WhatAStrangerSaysIsRefusedWithTheReason) {
  TestPipeline pipeline(HeadOptions(1));
  const auto says = [&](const control::FromStage& message) {
    Stranger stranger(pipeline.address());
    stranger.stream().Write(message);
    return stranger.End();
  };
  control::FromStage message;
  message.set_loaded(true);
  EXPECT_THAT(Message(says(message)), HasSubstr("the first message must be a hello"));
  message.mutable_hello()->set_protocol(99);
  EXPECT_THAT(Message(says(message)), HasSubstr("speaks version 99 of the protocol"));
  message.mutable_hello()->set_protocol(kControlProtocol);
  message.mutable_hello()->set_nonce("short");
  EXPECT_THAT(Message(says(message)), HasSubstr("nonce"));
  message.mutable_hello()->set_nonce(std::string(size_t{kMaxBytesFromStage}, 'x'));
  EXPECT_EQ(says(message).code(), absl::StatusCode::kResourceExhausted);

  Stranger stranger(pipeline.address());
  message.mutable_hello()->set_nonce(RandomNonce());
  ASSERT_TRUE(stranger.stream().Write(message));
  control::FromHead challenge;
  ASSERT_TRUE(stranger.stream().Read(&challenge));
  // The head's own proof is none of a stage.
  control::FromStage proof;
  proof.set_proof(challenge.challenge().proof());
  ASSERT_TRUE(stranger.stream().Write(proof));
  EXPECT_EQ(stranger.End().code(), absl::StatusCode::kUnauthenticated);

  StageThread right(pipeline.address(), 0, 1);
  right.Start();
  EXPECT_EQ(*pipeline.Generate({1}, 2), FakeContinuation({1}, 2));
}

TEST(RemoteStagesTest, SilentStrangersAreFewAndSoonGone) {
  TestPipeline pipeline(HeadOptions(1));
  const absl::Time start = absl::Now();
  std::vector<std::unique_ptr<Stranger>> strangers;
  for (int i = 0; i < 64; ++i) {
    strangers.push_back(std::make_unique<Stranger>(pipeline.address()));
    control::FromStage hello;
    hello.mutable_hello()->set_protocol(kControlProtocol);
    hello.mutable_hello()->set_nonce(RandomNonce());
    ASSERT_TRUE(strangers.back()->stream().Write(hello));
    control::FromHead challenge;
    ASSERT_TRUE(strangers.back()->stream().Read(&challenge));
  }
  Stranger one_more(pipeline.address());
  const absl::StatusCode refused = one_more.End().code();
  // Unless it took so long that the first of them are gone by now.
  if (absl::Now() - start < absl::Seconds(4)) {
    EXPECT_EQ(refused, absl::StatusCode::kResourceExhausted);
  }
  // A stage tries until there is room.
  StageThread stage(pipeline.address(), 0, 1);
  stage.Start();
  EXPECT_EQ(strangers[0]->End().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(*pipeline.Generate({1}, 2), FakeContinuation({1}, 2));
}

TEST(RemoteStagesTest, AStageThatBreaksTheProtocolIsNamed) {
  TestPipeline pipeline(HeadOptions(1));
  const RequestId waiting = pipeline.Submit({1}, 5);
  Stranger stage(pipeline.address());
  control::FromStage message;
  control::Hello& hello = *message.mutable_hello();
  hello.set_protocol(kControlProtocol);
  hello.set_version(kVersion);
  hello.set_nonce(RandomNonce());
  for (const auto& [name, sha256] : HeadOptions(1).fingerprints) {
    hello.add_fingerprints()->set_name(name);
    hello.mutable_fingerprints()->rbegin()->set_sha256(sha256);
  }
  const std::string claim = Claim(hello), nonce = hello.nonce();
  ASSERT_TRUE(stage.stream().Write(message));
  control::FromHead heard;
  ASSERT_TRUE(stage.stream().Read(&heard));
  message.set_proof(SharedSecret(kToken).Prove("stage", {heard.challenge().nonce(), nonce, claim}));
  ASSERT_TRUE(stage.stream().Write(message));
  message.set_loaded(true);
  ASSERT_TRUE(stage.stream().Write(message));
  while (heard.message_case() != control::FromHead::kStep) {
    ASSERT_TRUE(stage.stream().Read(&heard));
    if (heard.message_case() != control::FromHead::kConnect) continue;
    message.set_connected(heard.connect().generation());
    ASSERT_TRUE(stage.stream().Write(message));
  }
  control::Reports& reports = *message.mutable_reports();
  reports.set_generation(0);
  reports.add_reports()->set_kind(control::Report::COMPUTED);
  reports.mutable_reports(0)->set_micro_batch(5);
  ASSERT_TRUE(stage.stream().Write(message));
  const absl::StatusOr<std::vector<int32_t>> ended = pipeline.Await(waiting);
  ASSERT_FALSE(ended.ok());
  EXPECT_THAT(Message(ended.status()), AllOf(HasSubstr("stage 0 (host_a) breaks the protocol"),
                                             HasSubstr("computed micro-batch 5")));
}

}  // namespace
}  // namespace fabricast
