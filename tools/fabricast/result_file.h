// Results as JSON files: written whole or not at all, read back with their mistakes named.
#ifndef FABRICAST_TOOLS_FABRICAST_RESULT_FILE_H_
#define FABRICAST_TOOLS_FABRICAST_RESULT_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/metrics/result.pb.h"

namespace fabricast {

// A message as JSON: proto field names, every field present. The same message gives the same bytes.
absl::StatusOr<std::string> ToJson(const google::protobuf::Message& message);

// A file that is to be written at the end of a long run: opened at its beginning, so that a bad
// path fails then.
class ResultFile {
 public:
  // Makes "PATH.partial" beside the file, which stays as it is until Write. A PATH that is no
  // regular file (/dev/stdout, a pipe) is written directly. kNotFound, kPermissionDenied and the
  // like, naming PATH.
  static absl::StatusOr<ResultFile> Open(const std::string& path);

  ResultFile(ResultFile&& other) noexcept;
  ResultFile& operator=(ResultFile&&) = delete;
  ~ResultFile();  // without a Write nothing is left behind

  // Replaces PATH. Once. kUnavailable, naming PATH and the cause, if the disk does not take all of
  // it: PATH is then as it was.
  absl::Status Write(const Result& result);

 private:
  ResultFile(std::string path, std::string written, int fd);
  std::string path_;
  std::string written_;  // where the bytes go: path_ or beside it
  int fd_;
};

// kNotFound, or kInvalidArgument naming the file and the place, if it is no result of fabricast.
absl::StatusOr<Result> ReadResult(const std::string& path);

}  // namespace fabricast

#endif  // FABRICAST_TOOLS_FABRICAST_RESULT_FILE_H_
