#include "tools/fabricast/result_file.h"

#include <fcntl.h>
#include <google/protobuf/util/json_util.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"

namespace fabricast {
namespace {

constexpr char kSchema[] = "fabricast.result.v1";

absl::Status FileError(absl::StatusCode code, const std::string& path, int error) {
  return absl::Status(code, absl::StrCat(path, ": ", std::strerror(error)));
}

absl::StatusCode CodeOf(int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::StatusCode::kNotFound;
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::StatusCode::kPermissionDenied;
    default:
      return absl::StatusCode::kUnavailable;
  }
}

}  // namespace

absl::StatusOr<std::string> ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  if (!status.ok()) return absl::InternalError(status.ToString());
  return json;
}

ResultFile::ResultFile(std::string path, std::string written, int fd)
    : path_(std::move(path)), written_(std::move(written)), fd_(fd) {}

ResultFile::ResultFile(ResultFile&& other) noexcept
    : path_(std::move(other.path_)),
      written_(std::move(other.written_)),
      fd_(std::exchange(other.fd_, -1)) {}

ResultFile::~ResultFile() {
  if (fd_ < 0) return;
  close(fd_);
  if (written_ != path_) unlink(written_.c_str());
}

absl::StatusOr<ResultFile> ResultFile::Open(const std::string& path) {
  struct stat there;
  const bool exists = stat(path.c_str(), &there) == 0;
  if (exists && S_ISDIR(there.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is a folder: name a file in it"));
  }
  const bool in_place = exists && !S_ISREG(there.st_mode);
  const std::string written = in_place ? path : absl::StrCat(path, ".partial");
  const int fd = open(written.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return FileError(CodeOf(errno), path, errno);
  return ResultFile(path, written, fd);
}

absl::Status ResultFile::Write(const Result& result) {
  const absl::StatusOr<std::string> json = ToJson(result);
  if (!json.ok()) return json.status();
  for (size_t at = 0; at < json->size();) {
    const ssize_t wrote = write(fd_, json->data() + at, json->size() - at);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return FileError(absl::StatusCode::kUnavailable, path_, errno);
    at += static_cast<size_t>(wrote);
  }
  if (written_ == path_) return absl::OkStatus();
  if (fsync(fd_) != 0 || rename(written_.c_str(), path_.c_str()) != 0) {
    return FileError(absl::StatusCode::kUnavailable, path_, errno);
  }
  close(std::exchange(fd_, -1));
  return absl::OkStatus();
}

absl::StatusOr<Result> ReadResult(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (!in) return FileError(CodeOf(errno), path, errno);
  if (!(text << in.rdbuf())) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": empty or not a file"));
  }
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;  // of a later version
  Result result;
  const auto status = google::protobuf::util::JsonStringToMessage(text.str(), &result, options);
  if (!status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a result: ", std::string(status.message())));
  }
  if (result.schema() != kSchema) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": schema \"", result.schema(), "\", not \"", kSchema,
                     "\": give what `fabricast run --out` or `simulate --format=json` wrote"));
  }
  return result;
}

}  // namespace fabricast
