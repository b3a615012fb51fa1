#pragma once
#include <atomic>

#include "export.h"
#include "npu/trace.h"
#include "stream.h"

namespace npu {

// True while a sink is attached: the one branch the launch path pays.
NPU_RUNTIME_API extern std::atomic<bool> g_tracing;
inline bool tracing() { return __builtin_expect(g_tracing.load(std::memory_order_relaxed), false); }

NPU_RUNTIME_API npu_status trace_attach(npu_trace_sink_fn sink, void* user);
NPU_RUNTIME_API npu_status trace_detach();
NPU_RUNTIME_API npu_status trace_flush();
NPU_RUNTIME_API void trace_emit(const npu_trace_record& record);
// Replaces the task by one that records its begin and end; used by launch() while tracing.
NPU_RUNTIME_API npu_status launch_traced(Stream* stream, const npu_task& task);
// A driver copy of `bytes` between two markers of its stream, which record when it began and ended.
NPU_RUNTIME_API npu_status copy_traced(Stream* stream, void* dst, const void* src, std::size_t bytes);

}  // namespace npu
