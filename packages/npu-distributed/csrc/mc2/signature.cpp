#include "mc2/signature.h"

#include <cstring>
#include <vector>

#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

constexpr size_t kBytes = 256;  // the longest name, eight sizes of ten digits, and options

}  // namespace

size_t SignatureScratch(int world) { return (static_cast<size_t>(world) + 1) * kBytes; }  // and what this rank sends

void RequireSameSignature(Collectives& group, const std::string& signature, std::byte* scratch) {
  std::strncpy(reinterpret_cast<char*>(scratch), signature.c_str(), kBytes);
  scratch[kBytes - 1] = std::byte{0};
  std::vector<Region> outputs;
  for (size_t rank = 1; rank <= static_cast<size_t>(group.size()); ++rank)
    outputs.push_back({scratch + rank * kBytes, kBytes});
  group.AllGather(ElementType::kUInt8, {scratch, kBytes}, outputs);
  const auto said = [&](int rank) { return static_cast<const char*>(outputs[static_cast<size_t>(rank)].address); };
  for (int rank = 1; rank < group.size(); ++rank) {  // in the same order everywhere, so all ranks find the same text
    if (std::strcmp(said(0), said(rank)) == 0) continue;
    FailTogether(group, "EI0005: hccl: ranks called different operators: rank 0 " + std::string(said(0)) + ", rank " +
                            std::to_string(rank) + " " + said(rank) +
                            ". Every rank of a group must call the same operators in the same order, with sizes and "
                            "types that fit together");
  }
}

void FailTogether(Collectives& group, const std::string& text) {
  group.Abort(text.c_str());
  throw CommError(NPU_ERROR_TASK_FAILED, text);
}

}  // namespace npu::distributed
