/* npu/runtime.h: the runtime as plugins see it, in C.
 *
 * A plugin links nothing of npu-core.  npu_runtime() below finds the table in the libnpu_runtime.so that
 * `import torch_npu` has loaded, or returns NULL when npu-core is absent (a plugin then still serves CPU tensors).
 * The table only ever grows at its end; `version` changes when something is taken away.
 *
 * Errors: a function that fails returns its status and leaves a text in last_error() of the calling thread.
 * Every function is thread-safe unless it says otherwise.  Device numbers are the visible ones (npu:0, npu:1 ...).
 */
#ifndef NPU_RUNTIME_H_
#define NPU_RUNTIME_H_

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

#include "npu/driver.h"
#include "npu/trace.h"

#ifdef __cplusplus
extern "C" {
#endif

#define NPU_RUNTIME_VERSION 1u
#define NPU_RUNTIME_SONAME "libnpu_runtime.so"

typedef struct npu_stream npu_stream; /* lives as long as the process; compare by address */
typedef struct npu_event npu_event;

/* Memory an op reads or writes, for observers (profiler, sanitizer, dump).  Only looked at while one is attached. */
typedef struct npu_access {
  const void* address;
  size_t bytes;
  int32_t is_write;
  int32_t reserved;
} npu_access;

typedef struct npu_runtime_api {
  uint32_t struct_size;
  uint32_t version;

  /* Devices.  device_count never initialises; current_device is per thread. */
  int32_t (*device_count)(void);
  npu_status (*current_device)(int32_t* device);
  npu_status (*set_device)(int32_t device);
  npu_status (*device_properties)(int32_t device, npu_device_properties* properties);

  /* Streams.  `device` < 0 means the calling thread's current device.  NULL on failure. */
  npu_stream* (*current_stream)(int32_t device);
  npu_stream* (*default_stream)(int32_t device);
  npu_stream* (*stream_from_pool)(int32_t device, int32_t priority);
  npu_stream* (*stream_from_id)(int32_t device, int64_t id);
  int64_t (*stream_id)(npu_stream* stream);
  int32_t (*stream_device)(npu_stream* stream);
  npu_status (*stream_query)(npu_stream* stream);
  /* Waits and raises the stream's error, if any, as a status with text. */
  npu_status (*stream_synchronize)(npu_stream* stream);

  /* The one way to put work on a stream (driver.h describes npu_task).  Device memory named by raw pointers in the
   * payload stays valid until the task has run as long as it was allocated on this stream, because frees are
   * stream-ordered; for memory of another stream call record_stream. */
  npu_status (*launch)(npu_stream* stream, const npu_task* task, const npu_access* accesses, uint32_t access_count);

  /* Events. */
  npu_status (*event_create)(npu_event** event);
  npu_status (*event_destroy)(npu_event* event);
  npu_status (*event_record)(npu_event* event, npu_stream* stream);
  npu_status (*event_wait)(npu_event* event, npu_stream* stream);
  npu_status (*event_query)(npu_event* event);
  npu_status (*event_synchronize)(npu_event* event, int64_t timeout_ns);
  npu_status (*event_time)(npu_event* event, uint64_t* nanoseconds);

  /* Caching allocator.  `stream` NULL = current stream of `device`. */
  npu_status (*memory_allocate)(int32_t device, size_t bytes, npu_stream* stream, void** address);
  npu_status (*memory_free)(void* address);
  /* The block holding `address` will not be reused before work queued on `stream` until its free has finished. */
  npu_status (*memory_record_stream)(const void* address, npu_stream* stream);

  /* Memory of other processes (see driver.h). */
  npu_status (*memory_export)(const void* address, size_t bytes, npu_memory_handle* handle);
  npu_status (*memory_import)(const npu_memory_handle* handle, void** address, size_t* bytes);
  npu_status (*memory_close)(void* address);

  /* Reserves `count` Philox counters (rounded up to a multiple of 4) of the device's default generator. */
  npu_status (*philox_reserve)(int32_t device, uint64_t count, uint64_t* seed, uint64_t* offset);

  /* Options: string to string.  get returns NULL when unset; valid until the option changes. */
  const char* (*option_get)(const char* name);
  npu_status (*option_set)(const char* name, const char* value);

  /* Tracing.  One sink at a time.  detach flushes every ring before it returns. */
  npu_status (*trace_attach)(npu_trace_sink_fn sink, void* user);
  npu_status (*trace_detach)(void);
  npu_status (*trace_flush)(void);
  /* Adds a record of the plugin's own (mstx ranges, communication calls).  No-op without a sink. */
  void (*trace_emit)(const npu_trace_record* record);
  int32_t (*trace_enabled)(void);
  uint64_t (*clock_ns)(void);

  const char* (*last_error)(void);
} npu_runtime_api;

/* Exported by libnpu_runtime.so; NULL when `version` is not supported. */
typedef const npu_runtime_api* (*npu_runtime_get_fn)(uint32_t version);
#define NPU_RUNTIME_GET_SYMBOL "npu_runtime_get"

/* The runtime's table, or NULL when npu-core is not loaded in this process.  Cheap after the first success. */
static inline const npu_runtime_api* npu_runtime(void) {
  static const npu_runtime_api* api; /* benign race: every thread finds the same value */
  const npu_runtime_api* found = __atomic_load_n(&api, __ATOMIC_ACQUIRE);
  if (found == NULL) {
    /* NOLOAD: torch extensions are loaded RTLD_LOCAL, but a loaded soname can always be reopened. */
    void* library = dlopen(NPU_RUNTIME_SONAME, RTLD_NOW | RTLD_NOLOAD);
    if (library != NULL) {
      npu_runtime_get_fn get = (npu_runtime_get_fn)dlsym(library, NPU_RUNTIME_GET_SYMBOL);
      if (get != NULL) found = get(NPU_RUNTIME_VERSION);
      if (found != NULL) __atomic_store_n(&api, found, __ATOMIC_RELEASE);
    }
  }
  return found;
}

#ifdef __cplusplus
}
#endif
#endif /* NPU_RUNTIME_H_ */
