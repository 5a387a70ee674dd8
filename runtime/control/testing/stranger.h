// A peer of a head that says what it likes.
#ifndef FABRICAST_RUNTIME_CONTROL_TESTING_STRANGER_H_
#define FABRICAST_RUNTIME_CONTROL_TESTING_STRANGER_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "grpcpp/grpcpp.h"
#include "runtime/control/control.grpc.pb.h"
#include "runtime/control/protocol.h"

namespace fabricast {

class Stranger {
 public:
  explicit Stranger(const std::string& head)
      : stub_(control::Pipeline::NewStub(Channel(head))), stream_(stub_->Join(&context_)) {}
  ~Stranger() { context_.TryCancel(); }

  static std::shared_ptr<grpc::Channel> Channel(const std::string& head) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(head, grpc::InsecureChannelCredentials(), arguments);
  }

  grpc::ClientReaderWriter<control::FromStage, control::FromHead>& stream() { return *stream_; }
  // What the head says when it hangs up.
  absl::Status End() {
    control::FromHead ignored;
    while (stream_->Read(&ignored)) {
    }
    return FromGrpc(stream_->Finish());
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<control::Pipeline::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<control::FromStage, control::FromHead>> stream_;
};

}  // namespace fabricast

#endif  // FABRICAST_RUNTIME_CONTROL_TESTING_STRANGER_H_
