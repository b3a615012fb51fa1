/* npu/driver.h: what a device can do.
 *
 * A driver is one table of C functions.  The runtime (libnpu_runtime) is the only caller; it looks a driver up by
 * name (environment NPU_DRIVER, default "host").  No torch and no C++ type crosses this line, so a driver can be
 * built by any compiler against any torch.  tests/driver/ holds the conformance suite that every driver must pass.
 *
 * Conventions
 *  - Every function returns npu_status; results come back through pointers that must not be NULL.
 *  - "Thread-safe" = may be called from any thread at the same time as any other entry.
 *  - "Blocks" = may wait for the device.  An entry that says nothing about blocking returns promptly.
 *  - Devices are numbered 0 .. device_count-1 as the driver sees them; visibility masks are the runtime's business.
 *  - Sizes are bytes, times are nanoseconds.
 */
#ifndef NPU_DRIVER_H_
#define NPU_DRIVER_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NPU_DRIVER_VERSION 1u

/* ---- status ------------------------------------------------------------------------------------------------- */

typedef enum npu_status {
  NPU_OK = 0,
  NPU_ERROR_INVALID_ARGUMENT = 1, /* ValueError when a task reports it */
  NPU_ERROR_OUT_OF_MEMORY = 2,    /* torch.OutOfMemoryError */
  NPU_ERROR_NOT_SUPPORTED = 3,    /* NotImplementedError */
  NPU_ERROR_NOT_READY = 4,        /* answer of the query functions, not a failure */
  NPU_ERROR_TASK_FAILED = 5,      /* RuntimeError: a task on the stream failed */
  NPU_ERROR_INDEX = 6,            /* IndexError */
  NPU_ERROR_TYPE = 7,             /* TypeError */
  NPU_ERROR_SYSTEM = 8,           /* the operating system refused; the message holds errno's text */
  NPU_ERROR_TIMEOUT = 9,
  NPU_ERROR_STOPPED = 10 /* the driver was shut down or the stream stopped */
} npu_status;

#define NPU_ERROR_OP_SIZE 96
#define NPU_ERROR_MESSAGE_SIZE 3992

/* A failure with its text.  `op` names the task that failed ("aten::add.out"), empty for a direct call. */
typedef struct npu_error {
  int32_t status; /* npu_status */
  int32_t reserved;
  char op[NPU_ERROR_OP_SIZE];
  char message[NPU_ERROR_MESSAGE_SIZE];
} npu_error;

/* ---- tasks -------------------------------------------------------------------------------------------------- */

/* Who runs a task.  COMPUTE tasks of a process run one after the other on its compute engine, which owns the
 * thread team; they must not wait for anything.  COPY tasks may run on a copy engine.  BLOCKING tasks may wait
 * (peers of a collective, a host callback) and never occupy an engine. */
typedef enum npu_task_kind { NPU_TASK_COMPUTE = 0, NPU_TASK_COPY = 1, NPU_TASK_BLOCKING = 2 } npu_task_kind;

/* Runs the task.  Returns NPU_OK, or a status after filling `error->message`.  Must not throw. */
typedef npu_status (*npu_task_fn)(void* payload, npu_error* error);

typedef struct npu_task {
  npu_task_fn run;
  /* NULL when the payload is flat bytes.  Otherwise called exactly once, right after run, or instead of it when
   * the task is dropped (poisoned stream, shutdown), on a thread of the driver.  Must not call the driver. */
  void (*destroy)(void* payload);
  const char* name;    /* static string: the op's name in errors and traces */
  const void* payload; /* copied by submit with memcpy (relocated): must not point into itself */
  uint32_t payload_size;
  uint16_t kind;  /* npu_task_kind */
  uint16_t flags; /* NPU_TASK_ALWAYS or 0 */
} npu_task;

/* Runs even when the stream carries an error (releases, event-like bookkeeping). */
#define NPU_TASK_ALWAYS 1u

/* ---- objects ------------------------------------------------------------------------------------------------ */

typedef struct npu_driver_stream npu_driver_stream; /* opaque */
typedef struct npu_driver_event npu_driver_event;   /* opaque */

typedef struct npu_device_properties {
  uint32_t struct_size; /* set by the caller to sizeof(npu_device_properties) */
  int32_t is_emulated;  /* 1 for the host driver: results are real, timings are those of the CPU */
  char name[64];        /* SoC name, "Ascend910B1" */
  char driver[32];      /* driver name and version for people: "host 1.0" */
  uint8_t uuid[16];
  uint64_t total_memory;       /* bytes */
  uint64_t memory_granularity; /* memory_map sizes are multiples of this */
  uint64_t l2_cache_size;      /* bytes */
  int32_t cube_core_num;
  int32_t vector_core_num;
  int32_t soc_version; /* integer id of the SoC, -1 when unknown */
  int32_t reserved;
} npu_device_properties;

/* Names memory of this process for another process of the same user and machine.  Plain bytes: send it any way. */
typedef struct npu_memory_handle {
  uint8_t bytes[64];
} npu_memory_handle;

/* ---- fault injection (drivers that emulate) ----------------------------------------------------------------- */

typedef enum npu_fault_kind {
  NPU_FAULT_NONE = 0,
  NPU_FAULT_FAIL_TASK = 1,  /* the next `count` tasks whose name contains `match` fail with `status` */
  NPU_FAULT_DELAY_TASK = 2, /* ... start `delay_ns` late, or when NPU_FAULT_NONE comes (in stream order) */
  NPU_FAULT_FAIL_MAP = 3    /* the next `count` memory_map calls return NPU_ERROR_OUT_OF_MEMORY */
} npu_fault_kind;

typedef struct npu_fault {
  int32_t kind;   /* npu_fault_kind; NPU_FAULT_NONE removes every fault of the device */
  int32_t status; /* npu_status for FAIL_TASK */
  int64_t count;  /* how many times it strikes; -1 = until removed */
  uint64_t delay_ns;
  char match[64]; /* substring of the task name; empty matches every named task */
} npu_fault;

/* ---- the table ---------------------------------------------------------------------------------------------- */

typedef struct npu_driver {
  uint32_t struct_size; /* sizeof(npu_driver) of the driver's build: later fields may be absent */
  uint32_t version;     /* NPU_DRIVER_VERSION */
  const char* name;

  /* Starts threads, reads the environment.  Idempotent, thread-safe.  Must not be called before a fork that
   * wants to use the device in the child. */
  npu_status (*initialize)(npu_error* error);
  /* Drains every stream, then ends the driver's threads.  Blocks.  Afterwards every call but device_count and
   * initialize returns NPU_ERROR_STOPPED.  Idempotent. */
  npu_status (*shutdown)(void);

  /* Never initialises and leaves fork safe.  Thread-safe. */
  npu_status (*device_count)(int32_t* count);
  npu_status (*device_properties)(int32_t device, npu_device_properties* properties);
  /* 1 when tasks of `device` may address memory of `peer` directly.  0 for device == peer. */
  npu_status (*peer_access)(int32_t device, int32_t peer, int32_t* can_access);

  /* Device memory.  Mapped memory is addressable by every task of every device of this process; the caller owns
   * it until memory_unmap, which needs the same pointer and size.  Fresh memory reads as zero.  Unmapping memory
   * that a queued task uses is the caller's error.  Thread-safe.  OUT_OF_MEMORY when capacity would be exceeded. */
  npu_status (*memory_map)(int32_t device, size_t bytes, void** address);
  npu_status (*memory_unmap)(int32_t device, void* address, size_t bytes);
  /* free = capacity not mapped.  Thread-safe, never initialises streams. */
  npu_status (*memory_info)(int32_t device, size_t* free_bytes, size_t* total_bytes);
  /* Device that owns `address`, or NPU_ERROR_INVALID_ARGUMENT. */
  npu_status (*memory_owner)(const void* address, int32_t* device);

  /* A handle for the mapped range [address, address+bytes).  The exporter keeps ownership and must keep the range
   * mapped while a peer uses it. */
  npu_status (*memory_export)(const void* address, size_t bytes, npu_memory_handle* handle);
  /* Makes a peer's range addressable here.  Imports are counted: each needs one memory_close of the same address.
   * The mapping survives the exporter's exit.  Importing an own handle returns the original address. */
  npu_status (*memory_import)(const npu_memory_handle* handle, void** address, size_t* bytes);
  npu_status (*memory_close)(void* address);

  /* Page-locked ("pinned") host memory, which copies may use asynchronously.  Owned by the caller until freed. */
  npu_status (*host_allocate)(size_t bytes, void** address);
  npu_status (*host_free)(void* address, size_t bytes);

  /* A stream runs its tasks in submission order.  `priority`: lower runs first, 0 is normal, negative is high.
   * Owned by the caller.  destroy drains the stream first (blocks). */
  npu_status (*stream_create)(int32_t device, int32_t priority, npu_driver_stream** stream);
  npu_status (*stream_destroy)(npu_driver_stream* stream);
  /* Queues a task.  The descriptor and payload are copied before it returns.  Thread-safe.  Blocks only while the
   * queue is full.  A stream with an unread error still accepts tasks and drops them (destroy runs). */
  npu_status (*stream_submit)(npu_driver_stream* stream, const npu_task* task);
  /* NPU_OK when everything submitted so far has finished, else NPU_ERROR_NOT_READY.  Does not report errors. */
  npu_status (*stream_query)(npu_driver_stream* stream);
  /* Waits for everything submitted before the call.  `timeout_ns` < 0 waits for ever.  Blocks.  Returns
   * NPU_ERROR_TASK_FAILED while the stream carries an error (read it with stream_take_error). */
  npu_status (*stream_synchronize)(npu_driver_stream* stream, int64_t timeout_ns);
  /* Moves the stream's first error into `error` and makes the stream usable again; NPU_OK when there was none,
   * else the error's status.  Only one caller gets a given error. */
  npu_status (*stream_take_error)(npu_driver_stream* stream, npu_error* error);

  /* dst <- src in stream order; any mix of device and host memory.  Host memory must stay valid until the copy has
   * run.  Small copies run inline on the compute engine, large ones on a copy engine. */
  npu_status (*memory_copy)(npu_driver_stream* stream, void* dst, const void* src, size_t bytes);
  npu_status (*memory_set)(npu_driver_stream* stream, void* dst, int32_t byte, size_t bytes);

  /* Events.  record queues a marker; a later record replaces it.  wait makes later work of `stream` (of any
   * device) wait for the marker that was the newest when wait was called; no-op for a never recorded event.
   * A waiting stream is parked: it never holds an engine.  destroy is legal while waits are pending.
   * An event also completes on a stream that carries an error, and carries that error itself: a stream that waits for
   * it fails with the same error, unless the error was taken before event_wait was called.  Whoever takes an error that
   * came through events takes it from the streams it came from, too. */
  npu_status (*event_create)(npu_driver_event** event);
  npu_status (*event_destroy)(npu_driver_event* event);
  npu_status (*event_record)(npu_driver_event* event, npu_driver_stream* stream);
  npu_status (*event_wait)(npu_driver_event* event, npu_driver_stream* stream);
  npu_status (*event_query)(npu_driver_event* event);                           /* OK or NOT_READY */
  npu_status (*event_synchronize)(npu_driver_event* event, int64_t timeout_ns); /* blocks */
  npu_status (*event_time)(npu_driver_event* event, uint64_t* nanoseconds);     /* device clock; NOT_READY before */

  /* The device clock now, the one event_time and traces use (host driver: CLOCK_MONOTONIC). */
  uint64_t (*clock_ns)(void);

  /* NOT_SUPPORTED on real hardware. */
  npu_status (*inject_fault)(int32_t device, const npu_fault* fault);

  /* Text of the calling thread's last failed call; never NULL, valid until that thread's next driver call. */
  const char* (*last_error)(void);

  /* Waiting in pieces, so that a host thread can look after other things meanwhile: the ticket stands for everything
   * submitted so far, and stream_wait is stream_synchronize for what a ticket stands for. */
  npu_status (*stream_ticket)(npu_driver_stream* stream, uint64_t* ticket);
  npu_status (*stream_wait)(npu_driver_stream* stream, uint64_t ticket, int64_t timeout_ns); /* blocks */

  /* stop drops the tasks that have not begun (destroy runs, NPU_TASK_ALWAYS runs, events complete), ends a wait for an
   * event, and makes every later submit, copy, record and wait on the stream return NPU_ERROR_STOPPED with `reason`.
   * A task that runs is not interrupted; synchronize waits for it and then fails with the same.  resume takes errors
   * and makes the stream usable again.  Both thread-safe, idempotent. */
  npu_status (*stream_stop)(npu_driver_stream* stream, const char* reason);
  npu_status (*stream_resume)(npu_driver_stream* stream);
} npu_driver;

/* Exported by every driver library. */
typedef const npu_driver* (*npu_driver_get_fn)(uint32_t version);
#define NPU_DRIVER_GET_SYMBOL "npu_driver_get"

#ifdef __cplusplus
}
#endif
#endif /* NPU_DRIVER_H_ */
