// What a collective throws when it cannot finish.  The process group turns it into a stream error with this text.
#pragma once

#include <stdexcept>
#include <string>

#include "npu/driver.h"

namespace npu::distributed {

class CommError : public std::runtime_error {
 public:
  CommError(npu_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  npu_status status() const noexcept { return status_; }

 private:
  npu_status status_;
};

}  // namespace npu::distributed
