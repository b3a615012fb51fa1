#pragma once
#include <atomic>
#include <exception>
#include <memory>

#include "engine_thread.h"
#include "runtime/caching_allocator.h"
#include "runtime/device.h"
#include "runtime/driver_loader.h"
#include "runtime/stream.h"

namespace npu::aten {

// Runs `body` on the engine after everything queued on `stream`, waits for it, and rethrows what it threw.  An error
// that was pending on the stream is raised instead of running the body.
template <class Body>
void run_on_engine(Stream* stream, const char* name, Body&& body) {
  // `body` and what it uses die with this call.  A caller whose wait is interrupted therefore withdraws the body; when
  // it has begun, the caller must see its end.
  struct Call {
    Body* body;
    std::exception_ptr error;
    enum State { kQueued, kBegun, kWithdrawn };
    std::atomic<State> state{kQueued};
  };
  note_host_synchronization();
  auto call = std::make_shared<Call>();
  call->body = &body;
  auto* payload = new std::shared_ptr<Call>(call);
  npu_task task{};
  task.name = name;
  task.payload = &payload;
  task.payload_size = sizeof(payload);
  task.kind = NPU_TASK_COMPUTE;
  task.destroy = [](void* p) { delete *static_cast<std::shared_ptr<Call>**>(p); };
  task.run = [](void* p, npu_error*) noexcept {
    Call& c = ***static_cast<std::shared_ptr<Call>**>(p);
    auto queued = Call::kQueued;
    if (!c.state.compare_exchange_strong(queued, Call::kBegun)) return NPU_OK;
    try {
      EngineThread::current().begin_task();
      (*c.body)();
    } catch (...) {
      c.error = std::current_exception();
    }
    return NPU_OK;
  };
  try {
    launch(stream, task);
  } catch (...) {
    if (call.use_count() > 1) delete payload;  // the stream refused the task
    throw;
  }
  try {
    wait_and_throw(stream, Wait::Interruptible);
  } catch (...) {
    auto queued = Call::kQueued;
    if (!call->state.compare_exchange_strong(queued, Call::kWithdrawn)) {
      driver().stream_synchronize(stream->native, kForeverNs);
    }
    throw;
  }
  if (call->error) std::rethrow_exception(call->error);
  TORCH_CHECK(call->state == Call::kBegun, name,
              ": the task was dropped because an earlier operation on its stream failed");
}

}  // namespace npu::aten
