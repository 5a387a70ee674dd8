#include "runtime/transport/tcp_handshake.h"

#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fabricast {
namespace {

using ::testing::HasSubstr;

constexpr char kToken[] = "0123456789abcdef";
constexpr char kOtherToken[] = "0123456789abcdeg";
const StreamClaim kClaim = {.from = 0, .to = 2, .stream = 1, .streams = 3};

Dialler MakeDialler(const std::string& token = kToken, const std::string& session = "run 1",
                    const StreamClaim& claim = kClaim) {
  return Dialler(SharedSecret(token), session, claim, RandomNonce());
}

Acceptor MakeAcceptor(const std::string& token = kToken, const std::string& session = "run 1",
                      int stage = 2, int streams = 3) {
  return Acceptor(SharedSecret(token),
                  {.session = session,
                   .stage = stage,
                   .streams = streams,
                   .may_dial = [stage](int from) { return from < stage && from != 1; }},
                  RandomNonce());
}

struct Ending {
  absl::Status dialler;
  absl::Status acceptor;
};

// Hands the bytes over until neither can go on. `change` may alter them on their way.
Ending Shake(Dialler& dialler, Acceptor& acceptor,
             const std::function<void(bool to_acceptor, std::string&)>& change = nullptr) {
  Ending ending;
  std::string to_acceptor = dialler.hello();
  std::string to_dialler;
  if (change) change(true, to_acceptor);
  const auto take = [&](Handshake& side, bool is_acceptor, std::string& in, std::string& out,
                        absl::Status& status) {
    if (!status.ok() || side.wanted() == 0 || in.size() < side.wanted()) return false;
    const size_t wanted = side.wanted();
    EXPECT_LE(wanted, Handshake::kMostWanted);
    std::string reply;
    status = side.Take(in.substr(0, wanted), &reply);
    in.erase(0, wanted);
    if (change) change(!is_acceptor, reply);
    out += reply;
    return true;
  };
  while (take(acceptor, true, to_acceptor, to_dialler, ending.acceptor) ||
         take(dialler, false, to_dialler, to_acceptor, ending.dialler)) {
  }
  return ending;
}

TEST(TcpHandshakeTest, BothSidesAgreeOnTheClaim) {
  Dialler dialler = MakeDialler();
  Acceptor acceptor = MakeAcceptor();
  const Ending ending = Shake(dialler, acceptor);
  EXPECT_TRUE(ending.dialler.ok()) << ending.dialler;
  EXPECT_TRUE(ending.acceptor.ok()) << ending.acceptor;
  EXPECT_EQ(dialler.wanted(), 0u);
  EXPECT_EQ(acceptor.wanted(), 0u);
  ASSERT_TRUE(acceptor.claim().has_value());
  EXPECT_EQ(acceptor.claim()->from, 0);
  EXPECT_EQ(acceptor.claim()->to, 2);
  EXPECT_EQ(acceptor.claim()->stream, 1);
  EXPECT_EQ(acceptor.claim()->streams, 3);
}

struct Misfit {
  std::string acceptor_token = kToken;
  std::string session = "run 1";
  StreamClaim claim = kClaim;
  std::string dialler_says;
  std::string acceptor_says;
};

TEST(TcpHandshakeTest, MisfitsAreToldToBoth) {
  StreamClaim to_1 = kClaim, from_1 = kClaim, of_4 = kClaim, fourth = kClaim;
  to_1.to = 1;
  from_1.from = 1;
  of_4.streams = 4;
  fourth.stream = 3;
  const Misfit misfits[] = {
      {.session = "run 2", .dialler_says = "another session", .acceptor_says = "another session"},
      {.claim = to_1, .dialler_says = "it is stage 2", .acceptor_says = "it wants stage 1"},
      {.claim = from_1,
       .dialler_says = "has no link with stage 1",
       .acceptor_says = "this is stage 2"},
      {.claim = of_4,
       .dialler_says = "it wants 3 connections a link, this 4",
       .acceptor_says = "it wants 4 connections a link, this 3"},
      {.claim = fourth, .dialler_says = "3 connections", .acceptor_says = "3 connections"},
  };
  for (const Misfit& misfit : misfits) {
    Dialler dialler = MakeDialler(kToken, misfit.session, misfit.claim);
    Acceptor acceptor = MakeAcceptor(misfit.acceptor_token);
    const Ending ending = Shake(dialler, acceptor);
    EXPECT_THAT(std::string(ending.dialler.message()), HasSubstr(misfit.dialler_says));
    EXPECT_THAT(std::string(ending.acceptor.message()), HasSubstr(misfit.acceptor_says));
    EXPECT_NE(acceptor.wanted(), 0u);
  }
}

TEST(TcpHandshakeTest, WhoDoesNotKnowTheSecretIsRefusedByEither) {
  Dialler dialler = MakeDialler(kOtherToken);
  Acceptor acceptor = MakeAcceptor();
  const Ending ending = Shake(dialler, acceptor);
  // The dialler finds out first, and proves nothing to an impostor.
  EXPECT_EQ(ending.dialler.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(ending.acceptor.ok());
  EXPECT_NE(acceptor.wanted(), 0u);

  // A dialler that does not look at the acceptor's proof.
  std::string reply;
  ASSERT_TRUE(acceptor.Take(std::string(acceptor.wanted(), 'x'), &reply).code() ==
              absl::StatusCode::kPermissionDenied);
  EXPECT_NE(acceptor.wanted(), 0u);
}

TEST(TcpHandshakeTest, AnotherWireVersionIsToldToBoth) {
  Dialler dialler = MakeDialler();
  Acceptor acceptor = MakeAcceptor();
  const Ending ending = Shake(dialler, acceptor, [](bool to_acceptor, std::string& bytes) {
    if (to_acceptor) bytes[8] = 2;
  });
  EXPECT_THAT(std::string(ending.acceptor.message()),
              HasSubstr("wire version 2, this 1: run the same build everywhere"));
  // An acceptor of version 1 tells a dialler of version 1: not its version, so the refusal's code.
  EXPECT_THAT(std::string(ending.dialler.message()), HasSubstr("it refused, code 1"));

  Dialler old = MakeDialler();
  Acceptor newer = MakeAcceptor();
  const Ending other = Shake(old, newer, [](bool to_acceptor, std::string& bytes) {
    if (!to_acceptor) bytes[8] = 2;
  });
  EXPECT_THAT(std::string(other.dialler.message()),
              HasSubstr("wire version 2, this 1: run the same build everywhere"));
}

TEST(TcpHandshakeTest, OtherProgramsAreRecognised) {
  Dialler dialler = MakeDialler();
  std::string reply;
  EXPECT_THAT(std::string(dialler.Take("HTTP/1.1 400 Bad Request", &reply).message()),
              HasSubstr("another program answers there"));
  Acceptor acceptor = MakeAcceptor();
  EXPECT_THAT(std::string(acceptor.Take("GET / HTTP/1.1\r\n", &reply).message()),
              HasSubstr("another program dials"));
  EXPECT_EQ(reply, "");
}

// Whatever byte is changed on its way, the two do not both agree; but what a go-ahead says beside
// its version and verdict means nothing.
TEST(TcpHandshakeTest, NoByteThatMattersCanBeChanged) {
  Dialler model = MakeDialler();
  const size_t hello = model.hello().size();
  for (const bool to_acceptor : {true, false}) {
    const size_t bytes = to_acceptor ? hello + SharedSecret::kProofBytes : 24 + 64 + 24;
    for (size_t changed = 0; changed < bytes; ++changed) {
      Dialler dialler = MakeDialler();
      Acceptor acceptor = MakeAcceptor();
      size_t passed = 0;
      const Ending ending = Shake(dialler, acceptor, [&](bool this_way, std::string& part) {
        if (this_way != to_acceptor) return;
        if (changed >= passed && changed < passed + part.size()) part[changed - passed] ^= 1;
        passed += part.size();
      });
      const bool agreed = dialler.wanted() == 0 && acceptor.wanted() == 0 && ending.dialler.ok() &&
                          ending.acceptor.ok();
      const bool spare =
          !to_acceptor && ((changed >= 16 && changed < 24) || changed >= 24 + 64 + 16);
      EXPECT_EQ(agreed, spare) << (to_acceptor ? "to the acceptor, byte " : "to the dialler, byte ")
                               << changed;
    }
  }
}

TEST(TcpHandshakeTest, AProofCannotBeSentBackToItsMaker) {
  // Somebody without the secret dials, and answers the challenge with the acceptor's own proof.
  Acceptor acceptor = MakeAcceptor();
  Dialler dialler = MakeDialler(kOtherToken);
  std::string reply;
  ASSERT_TRUE(acceptor.Take(dialler.hello().substr(0, 16), &reply).ok());
  ASSERT_TRUE(acceptor.Take(dialler.hello().substr(16), &reply).ok());
  const std::string proof = reply.substr(reply.size() - SharedSecret::kProofBytes);
  EXPECT_EQ(acceptor.Take(proof, &reply).code(), absl::StatusCode::kPermissionDenied);
}

TEST(TcpHandshakeTest, AnOldConversationCannotBePlayedAgain) {
  std::string heard;
  Dialler dialler = MakeDialler();
  Acceptor acceptor = MakeAcceptor();
  ASSERT_TRUE(Shake(dialler, acceptor, [&](bool to_acceptor, std::string& bytes) {
                if (to_acceptor) heard += bytes;
              }).acceptor.ok());
  Acceptor again = MakeAcceptor();
  absl::Status status;
  std::string reply;
  while (status.ok() && again.wanted() > 0) {
    const size_t wanted = again.wanted();
    status = again.Take(heard.substr(0, wanted), &reply);
    heard.erase(0, wanted);
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
}

}  // namespace
}  // namespace fabricast
