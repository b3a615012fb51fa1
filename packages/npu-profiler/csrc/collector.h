/* collector.h: the recording side of npu-profiler, in C so that Python reaches it through ctypes.
 *
 * One collector per process, because the runtime has one trace sink.  It links neither torch nor npu-core: the runtime
 * is found through npu_runtime() of npu/runtime.h when recording starts.
 *
 * Life of a recording: start, work, stop, read (the counts and copies below), clear.  start, stop and clear are called
 * by one thread at a time (the Python side holds a lock); launch_marker by any thread.
 */
#ifndef NPU_PROFILER_COLLECTOR_H_
#define NPU_PROFILER_COLLECTOR_H_

#include <stddef.h>
#include <stdint.h>

#define NPU_PROFILER_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* An npu_trace_record with its name replaced by an index into the name table: 80 bytes instead of 152, since a run
 * has millions of records and a few hundred names. */
typedef struct npu_profiler_record {
  uint64_t begin_ns;
  uint64_t end_ns;
  uint64_t submit_ns;
  uint64_t correlation;
  int64_t stream_id;
  int64_t value;
  int32_t kind; /* npu_trace_kind */
  int32_t device;
  uint32_t thread_id;
  uint32_t task_kind; /* npu_task_kind */
  uint32_t name;      /* index for npu_profiler_name */
  uint32_t reserved;
} npu_profiler_record;

/* When a stream reached a marker. */
typedef struct npu_profiler_marker_time {
  uint64_t token;
  uint64_t time_ns;
} npu_profiler_marker_time;

/* Attaches the sink.  Returns an npu_status; NPU_ERROR_NOT_SUPPORTED when no runtime is loaded. */
NPU_PROFILER_API int32_t npu_profiler_start(void);
/* Detaches the sink after flushing every ring.  What was collected stays readable until clear. */
NPU_PROFILER_API int32_t npu_profiler_stop(void);
/* Frees what was collected.  Marker tasks still queued from before are ignored when they run. */
NPU_PROFILER_API void npu_profiler_clear(void);

/* Puts a marker on a stream: `token` comes back with the time at which the stream reached it. */
NPU_PROFILER_API int32_t npu_profiler_launch_marker(int32_t device, int64_t stream_id, uint64_t token);

/* Reading.  The copies return how many elements they wrote: at most `capacity`, starting at element `first`. */
NPU_PROFILER_API size_t npu_profiler_record_count(void);
NPU_PROFILER_API size_t npu_profiler_copy_records(size_t first, size_t capacity, npu_profiler_record* records);
NPU_PROFILER_API size_t npu_profiler_marker_count(void);
NPU_PROFILER_API size_t npu_profiler_copy_markers(size_t first, size_t capacity, npu_profiler_marker_time* times);
NPU_PROFILER_API uint32_t npu_profiler_name_count(void);
/* Valid until clear. */
NPU_PROFILER_API const char* npu_profiler_name(uint32_t index);
/* Records dropped since clear because memory ran out. */
NPU_PROFILER_API uint64_t npu_profiler_lost_count(void);

/* The device clock now, 0 when no runtime is loaded. */
NPU_PROFILER_API uint64_t npu_profiler_clock_ns(void);
/* Text of the calling thread's last failed call here. */
NPU_PROFILER_API const char* npu_profiler_last_error(void);

#ifdef __cplusplus
}
#endif
#endif /* NPU_PROFILER_COLLECTOR_H_ */
