// What a virtual network needs, what it says without it, and that nothing is left of it.
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tools/virtual_network/test_network.h"
#include "tools/virtual_network/virtual_network.h"

namespace fabricast {
namespace {

constexpr int kPort = 5000;
constexpr int kCannotBeTested = 77;

const std::vector<VirtualHost>& TwoHosts() {
  static const auto* const hosts =
      new std::vector<VirtualHost>{{.name = "a", .rate_mbit = 100}, {.name = "b"}};
  return *hosts;
}

// Fails the fork that calls it, with the reason on the test's output.
int Failed(const std::string& reason) {
  fprintf(stderr, "%s\n", reason.c_str());
  return 1;
}

bool Write(const std::string& path, const std::string& text) {
  const FileDescriptor file(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  return write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

// As container runtimes do: unshare answers EPERM.
bool ForbidNamespaces() {
  sock_filter instructions[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_unshare, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{.len = 4, .filter = instructions};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// What is left lets a user whose number is 0 be root in a user namespace; others need nothing.
bool DropRights() {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  __user_cap_data_struct left[2] = {};
  if (geteuid() == 0) left[0].effective = left[0].permitted = 1u << CAP_SETFCAP;
  return syscall(SYS_capset, &header, left) == 0;
}

// A user namespace that may have so many network namespaces.
bool LimitNetworkNamespaces(int count) {
  const std::string users = absl::StrCat("0 ", geteuid(), " 1");
  const std::string groups = absl::StrCat("0 ", getegid(), " 1");
  return unshare(CLONE_NEWUSER) == 0 && Write("/proc/self/setgroups", "deny") &&
         Write("/proc/self/uid_map", users) && Write("/proc/self/gid_map", groups) &&
         Write("/proc/sys/user/max_net_namespaces", absl::StrCat(count));
}

int ConnectHosts(VirtualNetwork& network) {
  absl::StatusOr<std::unique_ptr<HostProcess>> server = network.Fork("b", [] {
    const FileDescriptor client = Accept(Listen(kPort));
    return client.get() >= 0 ? 0 : 1;
  });
  if (!server.ok()) return Failed(server.status().ToString());
  const std::string ip = network.ip("b");
  absl::StatusOr<std::unique_ptr<HostProcess>> client = network.Fork(
      "a", [&] { return Connect(ip, kPort, absl::Now() + kPatience).get() >= 0 ? 0 : 1; });
  if (!client.ok()) return Failed(client.status().ToString());
  return (*client)->Wait(kPatience).value_or(2);
}

// The kernel frees namespaces a little after their last user has gone; also those that an attempt
// made before it failed, so attempts leave it more and more time.
absl::Status MakeInTime() {
  const absl::Time deadline = absl::Now() + kPatience;
  for (absl::Duration pause = absl::Milliseconds(5);; pause *= 2) {
    const absl::Status status = VirtualNetwork::Make(TwoHosts()).status();
    if (status.ok() || absl::Now() >= deadline) return status;
    absl::SleepFor(pause);
  }
}

class RightsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = WhyNoVirtualNetwork();
    if (!reason.empty()) GTEST_SKIP() << reason;
  }

  void RunInFork(const std::function<int()>& body) {
    const int status = StatusInFork(body);
    if (status == kCannotBeTested) GTEST_SKIP() << "user namespaces are missing or have no limits";
    EXPECT_EQ(status, 0);
  }
};

TEST_F(RightsTest, WithoutAnyRightTheMendIsNamed) {
  RunInFork([] {
    if (!DropRights() || !ForbidNamespaces()) return kCannotBeTested;
    const absl::Status status = VirtualNetwork::Make(TwoHosts()).status();
    if (!absl::IsPermissionDenied(status)) return Failed(status.ToString());
    for (const char* part :
         {"no right to make a network namespace (unshare: Operation not permitted)",
          "CAP_SYS_ADMIN", "kernel.unprivileged_userns_clone"}) {
      if (!absl::StrContains(status.message(), part)) return Failed(status.ToString());
    }
    return 0;
  });
}

TEST_F(RightsTest, AnOrdinaryUserHasItInAUserNamespace) {
  RunInFork([] {
    if (!DropRights()) return Failed("capset");
    if (StatusInFork([] { return unshare(CLONE_NEWNET) == 0 ? 1 : 0; }) != 0) {
      return Failed("there are rights left");
    }
    if (StatusInFork([] { return unshare(CLONE_NEWUSER) == 0 ? 0 : 1; }) != 0) {
      return kCannotBeTested;
    }
    absl::StatusOr<std::unique_ptr<VirtualNetwork>> network = VirtualNetwork::Make(TwoHosts());
    if (!network.ok()) return Failed(network.status().ToString());
    for (int disturbed = 0; disturbed < 2; ++disturbed) {
      if (const int failed = ConnectHosts(**network); failed != 0) return failed;
      const absl::Status status = (*network)->Disturb("b", {.delay = absl::Milliseconds(1)});
      if (!status.ok()) return Failed(status.ToString());
    }
    return 0;
  });
}

// Two hosts and a switch are three namespaces: as many as there may be. A second network cannot be
// made while anything is left of the first.
TEST_F(RightsTest, NothingIsLeftOfANetworkThatGoes) {
  RunInFork([] {
    if (!LimitNetworkNamespaces(3)) return kCannotBeTested;
    {
      absl::StatusOr<std::unique_ptr<VirtualNetwork>> network = VirtualNetwork::Make(TwoHosts());
      if (!network.ok()) return Failed(network.status().ToString());
      const absl::Status second = VirtualNetwork::Make(TwoHosts()).status();
      if (!absl::IsPermissionDenied(second)) return Failed(second.ToString());
      if (!absl::StrContains(second.message(), "user.max_net_namespaces")) {
        return Failed(second.ToString());
      }
    }
    const absl::Status status = MakeInTime();
    return status.ok() ? 0 : Failed(status.ToString());
  });
}

// Also not its programs and what disturbs its frames: they would hold its namespaces.
TEST_F(RightsTest, NothingIsLeftOfANetworkWhoseProgramIsKilled) {
  RunInFork([] {
    if (!LimitNetworkNamespaces(3)) return kCannotBeTested;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return Failed("pipe");
    const pid_t owner = fork();
    if (owner == 0) {
      absl::StatusOr<std::unique_ptr<VirtualNetwork>> network = VirtualNetwork::Make(TwoHosts());
      if (!network.ok()) _exit(Failed(network.status().ToString()));
      if (!(*network)->Disturb("a", {.loss = 0.1}).ok()) _exit(1);
      const auto program = (*network)->Start("a", {"sleep", "1000"});
      const auto forked = (*network)->Fork("b", [] { return pause(); });
      const char ready = program.ok() && forked.ok() ? 'y' : 'n';
      if (write(ends[1], &ready, 1) == 1) pause();
      _exit(1);
    }
    close(ends[1]);
    char ready = 'n';
    if (read(ends[0], &ready, 1) != 1 || ready != 'y') return Failed("the network did not start");
    if (VirtualNetwork::Make(TwoHosts()).ok()) return Failed("there may be two networks");
    kill(owner, SIGKILL);
    waitpid(owner, nullptr, 0);
    const absl::Status status = MakeInTime();
    return status.ok() ? 0 : Failed(status.ToString());
  });
}

}  // namespace
}  // namespace fabricast
