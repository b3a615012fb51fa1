// Life of a group: making and closing the communicator, launching works, names and streams.  The collectives
// themselves are in process_group_collectives.cpp.
#include "process_group/process_group_hccl.h"

#include <Python.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <map>
#include <set>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "process_group/communicator_registry.h"
#include "process_group/gloo_link.h"
#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

/// How long a group that is dropped without destroy_process_group() may still finish its works.
constexpr std::chrono::seconds kDropLimit{10};

struct LiveGroups {
  std::mutex mutex;
  std::set<ProcessGroupHCCL*> groups;
};

LiveGroups& AllGroups() {
  static LiveGroups* live = new LiveGroups;  // outlives groups that are destroyed during exit
  return *live;
}

/// Lets other Python threads run while this one waits, when it holds the interpreter lock.
class GilRelease {
 public:
  GilRelease() {
    if (Py_IsInitialized() != 0 && PyGILState_Check() != 0) state_ = PyEval_SaveThread();
  }
  ~GilRelease() {
    if (state_ != nullptr) PyEval_RestoreThread(state_);
  }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_ = nullptr;
};

KeyValueStore ViewOf(c10::intrusive_ptr<c10d::Store> store) {
  KeyValueStore view;
  view.set = [store](const std::string& key, const std::string& value) {
    store->set(key, std::vector<uint8_t>(value.begin(), value.end()));
  };
  view.get = [store](const std::string& key, std::chrono::milliseconds limit) {
    store->wait({key}, limit);
    const std::vector<uint8_t> value = store->get(key);
    return std::string(value.begin(), value.end());
  };
  return view;
}

std::string StorePrefix(int generation) { return "hccl/" + std::to_string(generation); }

/// The stream that groups with this buffer name share on a device.
npu_stream*& SharedStream(int device, const std::string& buffer_name) {
  static std::mutex mutex;
  static auto* streams = new std::map<std::pair<int, std::string>, npu_stream*>;
  const std::lock_guard lock(mutex);
  return (*streams)[{device, buffer_name}];
}

}  // namespace

ProcessGroupHCCL::ProcessGroupHCCL(c10::intrusive_ptr<c10d::Store> store, int rank, int size,
                                   c10::intrusive_ptr<Options> options)
    : Backend(rank, size),
      store_(std::move(store)),
      options_(c10::make_intrusive<Options>(*options)),
      environment_(Environment::Read()) {
  TORCH_CHECK_VALUE(rank >= 0 && rank < size, "ProcessGroupHCCL: rank should be in [0, size), but got rank ", rank,
                    " of ", size);
  constexpr size_t kLongestAlgorithm = 1599;
  if (auto found = options_->hccl_config.find("hccl_algo"); found != options_->hccl_config.end()) {
    if (auto* text = std::get_if<std::string>(&found->second)) text->resize(std::min(text->size(), kLongestAlgorithm));
  }
  if (environment_.error_handling != ErrorHandling::kNone) {
    watchdog_ = std::make_unique<Watchdog>(rank, environment_.error_handling, [this](const std::string& reason) {
      const std::lock_guard lock(mutex_);
      if (communicator_) communicator_->Abort(reason);
    });
  }
  init();
  LiveGroups& live = AllGroups();
  const std::lock_guard lock(live.mutex);
  live.groups.insert(this);
}

ProcessGroupHCCL::~ProcessGroupHCCL() {
  {
    LiveGroups& live = AllGroups();
    const std::lock_guard lock(live.mutex);
    live.groups.erase(this);
  }
  const GilRelease no_gil;
  watchdog_.reset();
  CloseCommunicator(kDropLimit);
}

c10::intrusive_ptr<c10d::Backend::Options> ProcessGroupHCCL::getBackendOptions() {
  return c10::static_intrusive_pointer_cast<Backend::Options>(options_);
}

void ProcessGroupHCCL::setTimeout(std::chrono::milliseconds timeout) {
  const std::lock_guard lock(mutex_);
  options_->timeout = timeout;
}

uint64_t ProcessGroupHCCL::getSequenceNumberForGroup() {
  const std::lock_guard lock(mutex_);
  return sequence_;
}

c10d::ErrorType ProcessGroupHCCL::getError() {
  const std::lock_guard lock(mutex_);
  return communicator_ && !communicator_->failure().empty() ? c10d::ErrorType::COMM_ERROR : c10d::ErrorType::SUCCESS;
}

void ProcessGroupHCCL::eagerConnectSingleDevice(at::Device device) {
  const std::lock_guard lock(mutex_);
  CommunicatorOn(device.index());
}

void ProcessGroupHCCL::waitForPendingWorks() {
  npu_stream* stream = nullptr;
  {
    const std::lock_guard lock(mutex_);
    stream = stream_;
  }
  if (stream != nullptr) CheckRuntime(Runtime().stream_synchronize(stream), "waiting for pending works");
}

// ---- communicator ---------------------------------------------------------------------------------------------------

void ProcessGroupHCCL::ValidateConfig() const {
  static const std::map<std::string, bool> kIsText = {
      {"hccl_buffer_size", false},       {"group_name", true},          {"hccl_buffer_name", true},
      {"qos_traffic_class", false},      {"qos_service_level", false},  {"hccl_sdma_qos", false},
      {"hccl_op_expansion_mode", false}, {"hccl_world_rank_id", false}, {"hccl_job_id", false},
      {"hccl_exec_timeout", false},      {"hccl_algo", true},           {"hccl_retry_enable", true},
      {"hccl_retry_params", true},
  };
  for (const auto& [key, value] : options_->hccl_config) {
    const auto known = kIsText.find(key);
    if (known == kIsText.end()) continue;
    const bool is_text = std::holds_alternative<std::string>(value);
    TORCH_CHECK(is_text == known->second, "Value type of ", key, " should be ", known->second ? "string." : "int.");
  }
  if (const auto found = options_->hccl_config.find("hccl_exec_timeout"); found != options_->hccl_config.end()) {
    TORCH_CHECK(std::get<int64_t>(found->second) <= INT32_MAX,
                "Value type of hccl_exec_timeout exceeds INT32_MAX(2147483647).");
  }
}

std::chrono::milliseconds ProcessGroupHCCL::ConfiguredExecutionTimeout() const {
  const auto found = options_->hccl_config.find("hccl_exec_timeout");
  if (found == options_->hccl_config.end()) return environment_.execution_timeout;
  const int64_t seconds = std::get<int64_t>(found->second);
  if (seconds >= 0) return std::chrono::seconds(seconds);
  TORCH_WARN("hccl_exec_timeout should not be negative, but got ", seconds, "; the default is used");
  return environment_.execution_timeout;
}

npu_stream* ProcessGroupHCCL::StreamOn(int device) {
  TORCH_CHECK(device_ < 0 || device_ == device,
              "ProcessGroupHCCL support one device per process only: this group uses ", "npu:", device_,
              ", but got a tensor on npu:", device);
  device_ = device;
  if (stream_ != nullptr) return stream_;
  const int priority = options_->is_high_priority_stream || environment_.high_priority ? -1 : 0;
  const auto buffer = options_->hccl_config.find("hccl_buffer_name");
  if (buffer != options_->hccl_config.end() && std::holds_alternative<std::string>(buffer->second)) {
    npu_stream*& shared = SharedStream(device, std::get<std::string>(buffer->second));
    if (shared == nullptr) shared = Runtime().stream_from_pool(device, priority);
    stream_ = shared;
  } else {
    stream_ = Runtime().stream_from_pool(device, priority);
  }
  TORCH_CHECK(stream_ != nullptr, "hccl: no communication stream: ", Runtime().last_error());
  return stream_;
}

Communicator& ProcessGroupHCCL::CommunicatorOn(int device) {
  TORCH_CHECK(!shut_down_, "hccl: this process group has been destroyed");
  npu_stream* stream = StreamOn(device);
  if (communicator_) {
    const std::string failure = communicator_->failure();
    if (failure.empty()) return *communicator_;
    C10_THROW_ERROR(DistBackendError,
                    "hccl: an earlier collective of this group failed, so the group cannot go on: " + failure +
                        ". Destroy it and initialise again, or call torch_npu.distributed.reinit_process_group()");
  }
  ValidateConfig();
  npu_device_properties properties{};
  properties.struct_size = sizeof properties;
  CheckRuntime(Runtime().device_properties(device, &properties), "reading device properties");
  TORCH_CHECK_NOT_IMPLEMENTED(properties.is_emulated != 0, "hccl: driver ", properties.driver,
                              " is not supported: this version of npu-distributed moves bytes with the CPU, so device "
                              "memory must be addressable by it (driver \"host\")");
  CommunicatorSettings settings;
  settings.rank = rank_;
  settings.size = size_;
  settings.device = device;
  settings.stream = stream;
  settings.connect_timeout = environment_.connect_timeout;
  settings.execution_timeout = ConfiguredExecutionTimeout();
  settings.name = comm_name_;
  if (settings.name.empty() && !options_->group_id.empty()) settings.name = "group_name_" + options_->group_id;
  auto store = c10::make_intrusive<c10d::PrefixStore>(StorePrefix(generation_), store_);
  std::unique_ptr<Communicator> made;
  try {
    made = std::make_unique<Communicator>(settings, ViewOf(store), GlooLinks(store, settings));
  } catch (const CommError& error) {
    ThrowStatus(error.status(), error.what());
  }
  RegisterCommunicator(made->name(), device, made.get());
  registered_name_ = made->name();
  communicator_ = std::move(made);
  if (!start_) start_ = MakeEvent();
  return *communicator_;
}

void ProcessGroupHCCL::CloseCommunicator(std::chrono::milliseconds limit) {
  std::unique_ptr<Communicator> closing;
  {
    const std::lock_guard lock(mutex_);
    closing = std::move(communicator_);
    if (closing == nullptr) return;
    UnregisterCommunicator(registered_name_, closing->device());
    ++generation_;
  }
  Communicator::Close(std::move(closing), limit);
}

void ProcessGroupHCCL::Abort(const std::string& reason) {
  {
    const std::lock_guard lock(mutex_);
    if (communicator_) communicator_->Abort(reason);
  }
  CloseCommunicator(std::chrono::milliseconds(0));
  if (watchdog_) watchdog_->Forgive();
}

void ProcessGroupHCCL::abort() { Abort("hccl: rank " + std::to_string(rank_) + " aborted the process group"); }

void ProcessGroupHCCL::shutdown() {
  const GilRelease no_gil;
  std::chrono::milliseconds limit{};
  {
    const std::lock_guard lock(mutex_);
    shut_down_ = true;
    limit = environment_.WorkTimeout(options_->timeout);
  }
  if (limit.count() == 0) limit = std::chrono::hours(24 * 365);
  CloseCommunicator(limit);
  watchdog_.reset();
}

// ---- works ----------------------------------------------------------------------------------------------------------

std::chrono::milliseconds ProcessGroupHCCL::NextTimeout(std::chrono::milliseconds requested) {
  std::chrono::milliseconds timeout =
      requested != c10d::kUnsetTimeout ? requested : environment_.WorkTimeout(options_->timeout);
  const std::shared_ptr<CallRecord> until = ephemeral_until_.lock();
  if (until && until->finished()) ephemeral_timeout_ = std::chrono::milliseconds(0);
  if (timeout.count() > 0) timeout += ephemeral_timeout_;
  return timeout;
}

c10::intrusive_ptr<c10d::Work> ProcessGroupHCCL::Run(Launch launch) {
  const std::lock_guard lock(mutex_);
  const at::Tensor& witness = launch.outputs.empty() ? launch.inputs.front() : launch.outputs.front();
  Communicator& communicator = CommunicatorOn(witness.device().index());
  const npu_runtime_api& runtime = Runtime();
  npu_stream* stream = communicator.stream();

  CheckRuntime(runtime.event_record(start_.get(), runtime.current_stream(communicator.device())),
               "ordering a collective after the current stream");
  CheckRuntime(runtime.event_wait(start_.get(), stream), "ordering a collective after the current stream");

  auto stash = std::make_shared<TensorStash>();
  if (environment_.memory_reuse == MemoryReuse::kHoldReferences) {
    std::vector<at::Tensor> kept = launch.inputs;
    kept.insert(kept.end(), launch.outputs.begin(), launch.outputs.end());
    stash->Keep(std::move(kept));
  } else {
    for (const auto* tensors : {&launch.inputs, &launch.outputs}) {
      for (const at::Tensor& tensor : *tensors) {
        const void* block = tensor.storage().data();
        if (block != nullptr) CheckRuntime(runtime.memory_record_stream(block, stream), "keeping a tensor's memory");
      }
    }
  }

  WorkHCCL::Start start;
  start.rank = rank_;
  start.device = communicator.device();
  start.op = launch.op;
  start.sequence = ++sequence_;
  start.timeout = NextTimeout(launch.timeout);
  start.blocks_host = launch.blocks_host || environment_.blocking_wait;
  start.abort_on_timeout = environment_.blocking_wait;
  start.stream = stream;
  start.outputs = std::move(launch.outputs);
  start.record = std::make_shared<CallRecord>();
  start.stash = stash;
  start.abort = [weak = c10::weak_intrusive_ptr<ProcessGroupHCCL>(
                     c10::intrusive_ptr<ProcessGroupHCCL>::reclaim_copy(this))](const std::string& reason) {
    if (auto self = weak.lock()) self->Abort(reason);
  };
  if (ephemeral_timeout_.count() > 0 && ephemeral_until_.expired()) ephemeral_until_ = start.record;

  const std::shared_ptr<CallRecord> record = start.record;
  const std::chrono::milliseconds timeout = start.timeout;
  communicator.Launch(launch.label, record, std::move(launch.body));
  auto work = c10::make_intrusive<WorkHCCL>(std::move(start));
  if (watchdog_) {
    Watchdog::Entry entry;
    entry.record = record;
    entry.stash = std::move(stash);
    entry.description = work->Describe();
    entry.timeout = timeout;
    watchdog_->Add(std::move(entry));
  }
  if (coalescing_) coalesced_.push_back(work);
  return work;
}

void ProcessGroupHCCL::startCoalescing() {
  const std::lock_guard lock(mutex_);
  coalescing_ = true;
  coalesced_.clear();
}

c10::intrusive_ptr<c10d::Work> ProcessGroupHCCL::endCoalescing() {
  const std::lock_guard lock(mutex_);
  coalescing_ = false;
  if (coalesced_.empty()) return nullptr;
  // The works ran on one stream in order, and a failure drops those behind it: the last one speaks for all.
  WorkHCCL::Start start;
  start.rank = rank_;
  start.device = device_;
  start.op = c10d::OpType::COALESCED;
  start.sequence = sequence_;
  start.timeout = environment_.WorkTimeout(options_->timeout);
  start.blocks_host = environment_.blocking_wait;
  start.stream = stream_;
  start.record = coalesced_.back()->record();
  start.abort = [](const std::string&) {};
  for (const auto& work : coalesced_) {
    start.outputs.insert(start.outputs.end(), work->outputs().begin(), work->outputs().end());
  }
  coalesced_.clear();
  return c10::make_intrusive<WorkHCCL>(std::move(start));
}

void ProcessGroupHCCL::AddEphemeralTimeout(std::chrono::milliseconds timeout) {
  const std::lock_guard lock(mutex_);
  ephemeral_timeout_ += timeout;
}

void ProcessGroupHCCL::ClearWatchedWorks() {
  if (watchdog_) watchdog_->Clear();
}

// ---- names and streams ----------------------------------------------------------------------------------------------

namespace {

int CurrentDevice() {
  int32_t device = 0;
  CheckRuntime(Runtime().current_device(&device), "reading the current device");
  return device;
}

}  // namespace

std::string ProcessGroupHCCL::CommName(int rank, bool create) {
  TORCH_CHECK(rank >= 0, "get_hccl_comm_name: rankid should not be negative, but got ", rank);
  const int device = CurrentDevice();
  const int count = Runtime().device_count();
  if (count > 0 && rank % count != device) {
    TORCH_WARN_ONCE("get_hccl_comm_name: rank ", rank, " belongs to npu:", rank % count, ", but npu:", device,
                    " is current; the current device is used");
  }
  const std::lock_guard lock(mutex_);
  if (create) return CommunicatorOn(device).name();
  return communicator_ && device_ == device ? communicator_->name() : "";
}

void ProcessGroupHCCL::SetCommName(const std::string& name) {
  constexpr size_t kLongest = 127;
  TORCH_CHECK(!name.empty() && name.size() <= kLongest, "_set_hccl_comm_name: expected 1 to ", kLongest,
              " characters, but got ", name.size());
  const std::lock_guard lock(mutex_);
  const std::string present = communicator_ ? communicator_->name() : comm_name_;
  TORCH_CHECK(present.empty() || present == name, "_set_hccl_comm_name: the name is already set to \"", present,
              "\" and cannot be duplicated");
  comm_name_ = name;
}

int64_t ProcessGroupHCCL::CommHandle(int rank) {
  TORCH_CHECK(rank >= 0, "get_hccl_comm: rankid should not be negative, but got ", rank);
  const int device = CurrentDevice();
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(reinterpret_cast<intptr_t>(&CommunicatorOn(device)));
}

int64_t ProcessGroupHCCL::CollectiveStreamId(int device) {
  const std::lock_guard lock(mutex_);
  return Runtime().stream_id(StreamOn(device));
}

int64_t ProcessGroupHCCL::ExistingStreamId() const {
  const std::lock_guard lock(mutex_);
  return stream_ != nullptr ? Runtime().stream_id(stream_) : -1;
}

void ShutdownAllGroups(std::chrono::milliseconds limit) {
  std::set<ProcessGroupHCCL*> groups;
  {
    LiveGroups& live = AllGroups();
    const std::lock_guard lock(live.mutex);
    groups = live.groups;
  }
  for (ProcessGroupHCCL* group : groups) {
    group->setTimeout(limit);
    group->shutdown();
  }
}

}  // namespace npu::distributed
