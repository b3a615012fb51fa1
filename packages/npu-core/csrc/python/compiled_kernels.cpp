// Kernels that torch.compile's Inductor generates: loaded from a library of their own, run as tasks of a stream.
#include <c10/util/SmallVector.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <utility>

#include "bindings.h"
#include "npu/runtime.h"
#include "runtime/error.h"
#include "runtime/stream.h"

namespace npu::python {
namespace {

// A generated kernel: reads its arguments from 64-bit words and may throw.
using Kernel = void (*)(const std::uint64_t* words);

npu_status run_kernel(void* payload, npu_error* error) noexcept {
  auto* words = static_cast<std::uint64_t*>(payload);
  Kernel kernel = nullptr;
  std::memcpy(&kernel, words, sizeof(kernel));
  try {
    kernel(words + 1);
    return NPU_OK;
  } catch (...) {
    return capture_exception(error);
  }
}

// Task names must outlive every task, and the library of a kernel is never unloaded either.
const char* permanent(const std::string& name) {
  static std::mutex mutex;
  static auto* names = new std::deque<std::string>();
  std::lock_guard lock(mutex);
  return names->emplace_back(name).c_str();
}

// Queues one kernel on the current stream of its tensors' device.
class CompiledKernel {
 public:
  // `signature` has one letter per argument: r and w for the memory of a tensor that is read or (also) written,
  // i for an integer, f for a floating point number.
  CompiledKernel(const std::string& name, std::uintptr_t address, std::string signature)
      : name_(permanent(name)), address_(address), signature_(std::move(signature)) {
    TORCH_CHECK_VALUE(signature_.find_first_not_of("rwif") == std::string::npos, "compiled kernel ", name,
                      ": unknown letter in signature '", signature_, "'");
  }

  void operator()(const py::args& arguments) const {
    TORCH_CHECK_TYPE(arguments.size() == signature_.size(), "compiled kernel ", name_, " takes ", signature_.size(),
                     " arguments, but got ", arguments.size());
    c10::SmallVector<std::uint64_t, 32> words{address_};
    c10::SmallVector<npu_access, 16> accesses;
    int device = -1;
    bool host_memory = false;
    for (std::size_t i = 0; i < signature_.size(); ++i) {
      PyObject* argument = PyTuple_GET_ITEM(arguments.ptr(), static_cast<Py_ssize_t>(i));
      std::uint64_t word = 0;
      switch (signature_[i]) {
        case 'i':
          word = static_cast<std::uint64_t>(PyLong_AsLongLong(argument));
          break;
        case 'f': {
          const double number = PyFloat_AsDouble(argument);
          std::memcpy(&word, &number, sizeof(word));
          break;
        }
        default: {
          TORCH_CHECK_TYPE(THPVariable_Check(argument), "compiled kernel ", name_, ": argument ", i,
                           " should be a tensor, but got ", Py_TYPE(argument)->tp_name);
          const at::Tensor& tensor = THPVariable_Unpack(argument);
          if (tensor.device().type() == c10::DeviceType::PrivateUse1) {
            TORCH_CHECK(device < 0 || device == tensor.device().index(), "compiled kernel ", name_,
                        ": expected all tensors to be on the same device, but found npu:", device, " and ",
                        tensor.device());
            device = tensor.device().index();
          } else {
            host_memory = true;
          }
          const void* data = tensor.unsafeGetTensorImpl()->data();
          word = reinterpret_cast<std::uintptr_t>(data);
          accesses.push_back({data, tensor.nbytes(), signature_[i] == 'w', 0});
        }
      }
      if (PyErr_Occurred() != nullptr) throw py::error_already_set();
      words.push_back(word);
    }
    submit(words, accesses, device, host_memory);
  }

 private:
  void submit(c10::ArrayRef<std::uint64_t> words, c10::ArrayRef<npu_access> accesses, int device,
              bool host_memory) const {
    TORCH_CHECK(device >= 0, "compiled kernel ", name_, ": none of its arguments is an npu tensor");
    npu_task task{};
    task.run = run_kernel;
    task.name = name_;
    task.payload = words.data();
    task.payload_size = static_cast<std::uint32_t>(words.size() * sizeof(std::uint64_t));
    task.kind = NPU_TASK_COMPUTE;
    Stream* stream = current_stream(device);
    py::gil_scoped_release release;  // a full queue makes launch wait
    launch(stream, task, accesses.data(), static_cast<std::uint32_t>(accesses.size()));
    // Host memory is not reused in stream order: its owner may free or change it as soon as we return.
    if (host_memory) synchronize_stream(stream);
  }

  const char* name_;
  std::uint64_t address_;
  std::string signature_;
};

}  // namespace

void bind_compiled_kernels(py::module_& module) {
  py::class_<CompiledKernel>(module, "_CompiledKernel")
      .def(py::init<const std::string&, std::uintptr_t, std::string>(), py::arg("name"), py::arg("address"),
           py::arg("signature"))
      .def("__call__", &CompiledKernel::operator());
}

}  // namespace npu::python
