// What the command line said.
#pragma once

#include <string>

#include "npu/driver.h"

namespace npu::conformance {

struct Program {
  std::string path;         // of this executable
  std::string driver_name;  // "host" or the path of a driver library
  const npu_driver* driver = nullptr;
};
Program& program();

}  // namespace npu::conformance
