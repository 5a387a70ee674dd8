#include "kernels/dense/cublaslt.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <map>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/gpu/cuda_status.h"
#include "kernels/gpu/dynamic_library.h"

namespace fabricast {
namespace {

// What cuBLAS's guide recommends for compute capability 9.0; others need less.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
// Of weights, input and output, as the headers promise it.
constexpr uint32_t kAlignmentBytes = 16;

struct Functions {
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtGetVersion) get_version = nullptr;
  decltype(&cublasLtGetStatusString) get_status_string = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) get_heuristic = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
};

absl::StatusOr<Functions> LoadFunctions(const std::vector<std::string>& libraries) {
  absl::StatusOr<DynamicLibrary> library =
      DynamicLibrary::Open(libraries, "cuBLASLt",
                           "install CUDA's libcublas-13-0 (or pip's nvidia-cublas), and if it is "
                           "in another folder, name "
                           "that in LD_LIBRARY_PATH");
  if (!library.ok()) return library.status();
  Functions functions;
  library->Find("cublasLtCreate", functions.create);
  library->Find("cublasLtDestroy", functions.destroy);
  library->Find("cublasLtGetVersion", functions.get_version);
  library->Find("cublasLtGetStatusString", functions.get_status_string);
  library->Find("cublasLtMatmulDescCreate", functions.desc_create);
  library->Find("cublasLtMatmulDescDestroy", functions.desc_destroy);
  library->Find("cublasLtMatmulDescSetAttribute", functions.desc_set);
  library->Find("cublasLtMatrixLayoutCreate", functions.layout_create);
  library->Find("cublasLtMatrixLayoutDestroy", functions.layout_destroy);
  library->Find("cublasLtMatmulPreferenceCreate", functions.preference_create);
  library->Find("cublasLtMatmulPreferenceDestroy", functions.preference_destroy);
  library->Find("cublasLtMatmulPreferenceSetAttribute", functions.preference_set);
  library->Find("cublasLtMatmulAlgoGetHeuristic", functions.get_heuristic);
  library->Find("cublasLtMatmul", functions.matmul);
  if (absl::Status status = library->Complete("cuBLASLt of CUDA 12 or 13"); !status.ok()) {
    return status;
  }
  return functions;
}

// One kind of product. Everything that a call needs but pointers.
struct Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t weights = nullptr, input = nullptr, output = nullptr;
  cublasLtMatmulAlgo_t algorithm = {};
};

// Type, outputs, inputs, tokens, output kind, stride.
using PlanKey = std::tuple<DenseType, int64_t, int64_t, int, OutputKind, int64_t>;

class LoadedCublasLt final : public CublasLt {
 public:
  LoadedCublasLt(const Functions& functions, cublasLtHandle_t handle)
      : functions_(functions), handle_(handle) {}

  ~LoadedCublasLt() override {
    for (auto& [key, plan] : plans_) Destroy(plan);
    functions_.destroy(handle_);
  }

  absl::Status Multiply(const DenseMatrix& weights, const Activations& input,
                        const GemmOutput& output, void* workspace, GpuStream stream) override {
    const ActivationFormat format =
        weights.type == DenseType::kBf16 ? ActivationFormat::kBf16Rows : ActivationFormat::kF16Rows;
    if (input.layout.format != format || input.layout.inputs != weights.inputs) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s weights of %d inputs cannot be multiplied by %d inputs in format %d",
                          weights.type == DenseType::kBf16 ? "BF16" : "FP16", weights.inputs,
                          input.layout.inputs, static_cast<int>(input.layout.format)));
    }
    if (input.layout.tokens == 0) return absl::OkStatus();
    const absl::StatusOr<const Plan*> plan =
        PlanFor({weights.type, weights.outputs, weights.inputs, input.layout.tokens, output.kind,
                 output.stride});
    if (!plan.ok()) return plan.status();
    const float one = 1, beta = output.kind == OutputKind::kAddF32 ? 1 : 0;
    return ToStatus(
        functions_.matmul(handle_, (*plan)->desc, &one, weights.data, (*plan)->weights, input.data,
                          (*plan)->input, &beta, output.data, (*plan)->output, output.data,
                          (*plan)->output, &(*plan)->algorithm, workspace, kWorkspaceBytes, stream),
        "cublasLtMatmul");
  }

  absl::Status Prepare(const DenseMatrix& weights, int tokens, OutputKind output,
                       int64_t stride) override {
    return PlanFor({weights.type, weights.outputs, weights.inputs, tokens, output,
                    stride == 0 ? weights.outputs : stride})
        .status();
  }

  int64_t workspace_bytes() const override { return kWorkspaceBytes; }
  int64_t version() const override { return static_cast<int64_t>(functions_.get_version()); }

 private:
  absl::Status ToStatus(cublasStatus_t status, absl::string_view what) const {
    if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
    const std::string message =
        absl::StrCat(what, ": ", functions_.get_status_string(status), " (", status, ")");
    switch (status) {
      case CUBLAS_STATUS_ALLOC_FAILED:
        return absl::ResourceExhaustedError(message);
      case CUBLAS_STATUS_INVALID_VALUE:
        return absl::InvalidArgumentError(message);
      case CUBLAS_STATUS_ARCH_MISMATCH:
      case CUBLAS_STATUS_NOT_SUPPORTED:
        return absl::UnimplementedError(message);
      default:
        return absl::InternalError(message);
    }
  }

  void Destroy(const Plan& plan) const {
    for (const cublasLtMatrixLayout_t layout : {plan.weights, plan.input, plan.output}) {
      if (layout != nullptr) functions_.layout_destroy(layout);
    }
    if (plan.desc != nullptr) functions_.desc_destroy(plan.desc);
  }

  absl::StatusOr<const Plan*> PlanFor(const PlanKey& key) {
    const auto found = plans_.find(key);
    if (found != plans_.end()) return &found->second;
    Plan plan;
    if (absl::Status status = Make(key, plan); !status.ok()) {
      Destroy(plan);
      return status;
    }
    return &plans_.emplace(key, plan).first->second;
  }

  // cuBLASLt's matrices are column-major: it computes the transposed output, [outputs, tokens], of
  // weights that it takes for [inputs, outputs], transposed, and of input for [inputs, tokens].
  absl::Status Make(const PlanKey& key, Plan& plan) const {
    const auto& [type, outputs, inputs, tokens, kind, stride] = key;
    const std::string what =
        absl::StrFormat("cuBLASLt for %d outputs, stride %d, %d inputs, %d tokens", outputs, stride,
                        inputs, tokens);
    const cudaDataType_t from = type == DenseType::kBf16 ? CUDA_R_16BF : CUDA_R_16F;
    const cudaDataType_t to = kind == OutputKind::kBf16 ? CUDA_R_16BF : CUDA_R_32F;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    absl::Status status;
    const auto ok = [&](cublasStatus_t result) {
      status = ToStatus(result, what);
      return status.ok();
    };
    if (!ok(functions_.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F)) ||
        !ok(functions_.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                sizeof(transposed))) ||
        !ok(functions_.layout_create(&plan.weights, from, inputs, outputs, inputs)) ||
        !ok(functions_.layout_create(&plan.input, from, inputs, tokens, inputs)) ||
        !ok(functions_.layout_create(&plan.output, to, outputs, tokens, stride))) {
      return status;
    }

    cublasLtMatmulPreference_t preference = nullptr;
    if (!ok(functions_.preference_create(&preference))) return status;
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      return ok(functions_.preference_set(preference, attribute, &value, sizeof(value)));
    };
    cublasLtMatmulHeuristicResult_t result = {};
    int results = 0;
    // Parts of a sum that several blocks share are kept in FP32 and added in order.
    if (set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes)) &&
        set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)) &&
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, kAlignmentBytes) &&
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, kAlignmentBytes) &&
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, kAlignmentBytes) &&
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, kAlignmentBytes) &&
        ok(functions_.get_heuristic(handle_, plan.desc, plan.weights, plan.input, plan.output,
                                    plan.output, preference, 1, &result, &results)) &&
        results == 0) {
      status = absl::UnimplementedError(absl::StrCat(what, ": it has no algorithm"));
    }
    functions_.preference_destroy(preference);
    plan.algorithm = result.algo;
    return status;
  }

  const Functions functions_;
  const cublasLtHandle_t handle_;
  std::map<PlanKey, Plan> plans_;  // pointers stay valid
};

}  // namespace

std::vector<std::string> CublasLt::Libraries() {
  std::vector<std::string> libraries = {"libcublasLt.so.13", "libcublasLt.so.12"};
  std::vector<std::string> roots;
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
    if (const char* root = std::getenv(variable); root != nullptr && *root != 0) {
      roots.push_back(root);
    }
  }
  roots.push_back("/usr/local/cuda");
  for (const std::string& root : roots) {
    for (const char* version : {"13", "12"}) {
      libraries.push_back(absl::StrCat(root, "/lib64/libcublasLt.so.", version));
    }
  }
  return libraries;
}

absl::StatusOr<std::unique_ptr<CublasLt>> CublasLt::Load(
    const std::vector<std::string>& libraries) {
  const absl::StatusOr<Functions> functions = LoadFunctions(libraries);
  if (!functions.ok()) return functions.status();
  FABRICAST_RETURN_IF_CUDA_FAILS(cudaFree(nullptr));  // makes the context
  cublasLtHandle_t handle = nullptr;
  if (const cublasStatus_t status = functions->create(&handle); status != CUBLAS_STATUS_SUCCESS) {
    return absl::UnavailableError(
        absl::StrCat("cublasLtCreate: ", functions->get_status_string(status), " (", status,
                     "); cuBLASLt and the GPU's driver may not fit"));
  }
  return std::make_unique<LoadedCublasLt>(*functions, handle);
}

}  // namespace fabricast
