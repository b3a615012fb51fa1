#pragma once
#include <exception>

#include "engine_thread.h"
#include "runtime/caching_allocator.h"
#include "runtime/device.h"
#include "runtime/stream.h"

namespace npu::aten {

// Runs `body` on the engine after everything queued on `stream`, waits for it, and rethrows what it threw.  An error
// that was pending on the stream is raised instead of running the body.
template <class Body>
void run_on_engine(Stream* stream, const char* name, Body&& body) {
  note_host_synchronization();
  struct Call {
    Body* body;
    std::exception_ptr error;
    bool ran = false;
  } call{&body, nullptr};
  Call* payload = &call;
  npu_task task{};
  task.name = name;
  task.payload = &payload;
  task.payload_size = sizeof(payload);
  task.kind = NPU_TASK_COMPUTE;
  task.run = [](void* p, npu_error*) noexcept {
    Call& c = **static_cast<Call**>(p);
    try {
      EngineThread::current().begin_task();
      (*c.body)();
    } catch (...) {
      c.error = std::current_exception();
    }
    c.ran = true;
    return NPU_OK;
  };
  launch(stream, task);
  wait_and_throw(stream);
  if (call.error) std::rethrow_exception(call.error);
  TORCH_CHECK(call.ran, name, ": the task was dropped because an earlier operation on its stream failed");
}

}  // namespace npu::aten
