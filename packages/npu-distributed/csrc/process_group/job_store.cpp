#include "process_group/job_store.h"

#include <chrono>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <vector>

namespace npu::distributed {
namespace {

// A store that does not answer must not keep the thread that reports a time-out.
constexpr std::chrono::seconds kPatience{5};

}  // namespace

template <class Body>
void JobStore::Try(Body&& body) noexcept {
  if (!store_) return;
  try {
    body();
  } catch (...) {
    store_.reset();
  }
}

JobStore::JobStore(const c10::intrusive_ptr<c10d::Store>& group_store, bool shared_by_job) {
  c10::intrusive_ptr<c10d::Store> base = group_store;
  if (shared_by_job) {
    if (auto* prefixed = dynamic_cast<c10d::PrefixStore*>(group_store.get())) {
      base = prefixed->getUnderlyingNonPrefixStore();
    }
  }
  try {
    store_ = base->clone();
    store_->setTimeout(kPatience);
  } catch (const std::exception&) {
    store_ = base;  // a store that cannot be copied is shared, with its own time-out
  }
}

void JobStore::Set(const std::string& key, const std::string& value) noexcept {
  Try([&] { store_->set(key, std::vector<uint8_t>(value.begin(), value.end())); });
}

std::optional<std::string> JobStore::Get(const std::string& key) noexcept {
  std::optional<std::string> result;
  Try([&] {
    if (!store_->check({key})) return;
    const std::vector<uint8_t> value = store_->get(key);
    result.emplace(value.begin(), value.end());
  });
  return result;
}

std::optional<int64_t> JobStore::Add(const std::string& key, int64_t amount) noexcept {
  std::optional<int64_t> result;
  Try([&] { result = store_->add(key, amount); });
  return result;
}

}  // namespace npu::distributed
