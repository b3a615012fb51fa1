#include <torch/csrc/Generator.h>

#include "bindings.h"
#include "runtime/generator.h"

namespace npu::python {

void bind_random(py::module_& module) {
  module.def("_default_generator", call([](int device) {
               return py::reinterpret_steal<py::object>(THPGenerator_initDefaultGenerator(default_generator(device)));
             }));
  module.def("_reserve_philox", call([](int device, std::uint64_t count) {
               const PhiloxState state = reserve_philox(std::nullopt, device, count);
               return std::make_pair(state.seed, state.offset);
             }));
}

}  // namespace npu::python
