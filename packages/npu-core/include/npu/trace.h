/* npu/trace.h: how an observer sees what the device does.
 *
 * While a sink is attached, the runtime writes one record per task and per traced API call into a lock-free ring of
 * the recording thread and hands full batches to the sink.  Without a sink the cost is one predictable branch.
 */
#ifndef NPU_TRACE_H_
#define NPU_TRACE_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NPU_TRACE_VERSION 1u

typedef enum npu_trace_kind {
  NPU_TRACE_TASK = 0,  /* a task ran on a stream: begin/end are device times */
  NPU_TRACE_API = 1,   /* a host call: begin/end on the calling thread */
  NPU_TRACE_MEMORY = 2 /* allocator event: value = bytes, name = "alloc" or "free" */
} npu_trace_kind;

typedef struct npu_trace_record {
  int32_t kind; /* npu_trace_kind */
  int32_t device;
  int64_t stream_id;    /* as torch reports it; -1 when there is none */
  uint64_t correlation; /* joins a task with the API record of its launch; unique in the process, 0 = none */
  uint64_t begin_ns;    /* CLOCK_MONOTONIC */
  uint64_t end_ns;
  uint64_t submit_ns; /* task: when it was launched on the host */
  int64_t value;
  uint32_t thread_id; /* OS id of the recording thread */
  uint32_t task_kind; /* npu_task_kind for tasks */
  char name[88];      /* op name, cut to fit, always terminated */
} npu_trace_record;

/* Called with a batch.  May come from any thread, never two at a time.  Must not call the runtime. */
typedef void (*npu_trace_sink_fn)(const npu_trace_record* records, size_t count, void* user);

#ifdef __cplusplus
}
#endif
#endif /* NPU_TRACE_H_ */
