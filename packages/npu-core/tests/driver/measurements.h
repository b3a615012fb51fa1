// The --measure mode of the conformance program.
#pragma once

namespace npu::conformance {

int measure();

}  // namespace npu::conformance
