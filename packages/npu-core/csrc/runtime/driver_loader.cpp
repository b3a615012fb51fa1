#include "driver_loader.h"

#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace npu {
namespace {

std::string wanted_driver() {
  const char* name = std::getenv("NPU_DRIVER");
  return name != nullptr && *name != '\0' ? name : "host";
}

// Drivers live beside this library.
std::filesystem::path library_folder() {
  Dl_info info{};
  TORCH_CHECK(dladdr(reinterpret_cast<const void*>(&wanted_driver), &info) != 0,
              "npu: cannot locate libnpu_runtime.so");
  return std::filesystem::path(info.dli_fname).parent_path();
}

const npu_driver* load() {
  const std::string name = wanted_driver();
  const auto path = library_folder() / ("libnpu_" + name + ".so");
  TORCH_CHECK(std::filesystem::exists(path), "NPU_DRIVER=", name, " names no installed driver: ", path.string(),
              " does not exist. Unset NPU_DRIVER to use the embedded host driver.");
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  TORCH_CHECK(library != nullptr, "npu: cannot load driver '", name, "': ", dlerror());
  auto get = reinterpret_cast<npu_driver_get_fn>(dlsym(library, NPU_DRIVER_GET_SYMBOL));
  TORCH_CHECK(get != nullptr, "npu: ", path.string(), " is not a driver: it does not export " NPU_DRIVER_GET_SYMBOL);
  const npu_driver* table = get(NPU_DRIVER_VERSION);
  TORCH_CHECK(table != nullptr && table->struct_size >= sizeof(npu_driver), "npu: driver '", name,
              "' does not speak driver interface version ", NPU_DRIVER_VERSION,
              "; install the driver build that belongs to this npu-core.");
  return table;
}

}  // namespace

const npu_driver& driver() {
  static const npu_driver* table = load();
  return *table;
}

const char* driver_name() { return driver().name; }

}  // namespace npu
