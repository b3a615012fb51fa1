// Device memory, host memory and copies between them.
#include <cstring>
#include <map>
#include <random>

#include "suite.h"

namespace npu::conformance {
namespace {

size_t free_bytes(int device = 0) {
  size_t free = 0, total = 0;
  CHECK_OK(driver().memory_info(device, &free, &total));
  CHECK(free <= total);
  return free;
}

bool all_are(const unsigned char* bytes, size_t count, unsigned char value) {
  return count == 0 || (bytes[0] == value && memcmp(bytes, bytes + 1, count - 1) == 0);
}

}  // namespace

DRIVER_CASE(properties_are_sensible) {
  int32_t count = 0;
  CHECK_OK(driver().device_count(&count));
  CHECK(count >= 1);
  std::string first_uuid;
  for (int device = 0; device < count; ++device) {
    npu_device_properties properties{};
    properties.struct_size = sizeof(properties);
    CHECK_OK(driver().device_properties(device, &properties));
    CHECK(strlen(properties.name) > 0);
    CHECK(strlen(properties.driver) > 0);
    CHECK(properties.memory_granularity > 0);
    CHECK_EQUAL(properties.total_memory % properties.memory_granularity, 0);
    size_t free = 0, total = 0;
    CHECK_OK(driver().memory_info(device, &free, &total));
    CHECK_EQUAL(total, properties.total_memory);
    std::string uuid(reinterpret_cast<char*>(properties.uuid), 16);
    CHECK(uuid != first_uuid);
    if (device == 0) first_uuid = uuid;
    if (driver_is_host()) {
      CHECK_EQUAL(properties.is_emulated, 1);
      CHECK_EQUAL(properties.cube_core_num, 24);
      CHECK_EQUAL(properties.vector_core_num, 48);
      CHECK_EQUAL(properties.l2_cache_size, 192u << 20);
    }
    int32_t access = 7;
    CHECK_OK(driver().peer_access(device, device, &access));
    CHECK_EQUAL(access, 0);
  }
  npu_device_properties old{};
  old.struct_size = offsetof(npu_device_properties, uuid);  // of a caller built against a shorter structure
  memset(old.uuid, 0x5A, sizeof(old.uuid));
  CHECK_OK(driver().device_properties(0, &old));
  CHECK_EQUAL(static_cast<int>(old.uuid[0]), 0x5A);
  npu_device_properties none{};
  none.struct_size = sizeof(none);
  CHECK_EQUAL(driver().device_properties(count, &none), NPU_ERROR_INVALID_ARGUMENT);
}

DRIVER_CASE(mapped_memory_counts_and_reads_as_zero) {
  size_t unit = granularity();
  size_t before = free_bytes();
  for (int round = 0; round < 3; ++round) {
    void* address = nullptr;
    CHECK_OK(driver().memory_map(0, 4 * unit, &address));
    CHECK_EQUAL(free_bytes(), before - 4 * unit);
    CHECK(all_are(static_cast<unsigned char*>(address), 4 * unit, 0));
    memset(address, 0xAB, 4 * unit);  // the next round may get the same range: it must be zero again
    CHECK_OK(driver().memory_unmap(0, address, 4 * unit));
    CHECK_EQUAL(free_bytes(), before);
  }
}

DRIVER_CASE(capacity_is_enforced) {
  size_t unit = granularity(), free = free_bytes();
  void* address = nullptr;
  CHECK_EQUAL(driver().memory_map(0, free + unit, &address), NPU_ERROR_OUT_OF_MEMORY);
  CHECK(strlen(driver().last_error()) > 0);
  CHECK_OK(driver().memory_map(0, free, &address));
  CHECK_EQUAL(free_bytes(), 0);
  void* more = nullptr;
  CHECK_EQUAL(driver().memory_map(0, unit, &more), NPU_ERROR_OUT_OF_MEMORY);
  CHECK_OK(driver().memory_unmap(0, address, free));
  CHECK_EQUAL(free_bytes(), free);
  CHECK_OK(driver().memory_map(0, unit, &more));
  CHECK_OK(driver().memory_unmap(0, more, unit));
}

DRIVER_CASE(more_than_the_machine_has_is_refused) {
  // Enough capacity in name; the machine cannot back it, and says so instead of killing somebody later.
  if (!driver_is_host()) throw Skip("about memory that the host emulates");
  CHECK_OK(driver().shutdown());
  setenv("NPU_HOST_MEMORY", "1TiB", 1);
  setenv("NPU_HOST_DEVICE_COUNT", "1", 1);
  initialize();
  void* address = nullptr;
  CHECK_EQUAL(driver().memory_map(0, size_t{1} << 40, &address), NPU_ERROR_OUT_OF_MEMORY);
  CHECK(strstr(driver().last_error(), "machine") != nullptr);
  CHECK_EQUAL(free_bytes(), size_t{1} << 40);
  DeviceMemory memory(1);
}

DRIVER_CASE(wrong_sizes_and_addresses_are_refused) {
  size_t unit = granularity();
  void* address = nullptr;
  CHECK_EQUAL(driver().memory_map(0, 0, &address), NPU_ERROR_INVALID_ARGUMENT);
  if (unit > 1) CHECK_EQUAL(driver().memory_map(0, unit + 1, &address), NPU_ERROR_INVALID_ARGUMENT);
  CHECK_EQUAL(driver().memory_map(99, unit, &address), NPU_ERROR_INVALID_ARGUMENT);
  CHECK_OK(driver().memory_map(0, 2 * unit, &address));
  CHECK_EQUAL(driver().memory_unmap(0, address, unit), NPU_ERROR_INVALID_ARGUMENT);
  CHECK_EQUAL(driver().memory_unmap(0, static_cast<char*>(address) + unit, unit), NPU_ERROR_INVALID_ARGUMENT);
  int local = 0;
  CHECK_EQUAL(driver().memory_unmap(0, &local, unit), NPU_ERROR_INVALID_ARGUMENT);
  CHECK_OK(driver().memory_unmap(0, address, 2 * unit));
  CHECK_EQUAL(driver().memory_unmap(0, address, 2 * unit), NPU_ERROR_INVALID_ARGUMENT);
}

DRIVER_CASE(memory_has_an_owner) {
  need_devices(2);
  DeviceMemory first(1, 0), second(1, 1);
  int32_t owner = -1;
  CHECK_OK(driver().memory_owner(first.data(), &owner));
  CHECK_EQUAL(owner, 0);
  CHECK_OK(driver().memory_owner(second.data() + second.bytes - 1, &owner));
  CHECK_EQUAL(owner, 1);
  CHECK_EQUAL(driver().memory_owner(&owner, &owner), NPU_ERROR_INVALID_ARGUMENT);
  void* address = first.address;
  CHECK_OK(driver().memory_unmap(0, address, first.bytes));
  first.address = nullptr;
  CHECK_EQUAL(driver().memory_owner(address, &owner), NPU_ERROR_INVALID_ARGUMENT);
  int32_t access = 0;
  CHECK_OK(driver().peer_access(0, 1, &access));
  if (access == 0) throw Skip("devices do not reach each other's memory");
  // Tasks of either device reach it.
  Stream stream(0);
  unsigned char* target = second.data();
  submit(stream, NPU_TASK_COMPUTE, [target] { target[5] = 77; });
  synchronize(stream);
  CHECK_EQUAL(static_cast<int>(second.data()[5]), 77);
}

DRIVER_CASE(ranges_never_overlap_and_are_reused) {
  size_t unit = granularity();
  std::mt19937 random(12345);
  std::map<unsigned char*, std::pair<size_t, unsigned char>> live;
  size_t before = free_bytes();
  auto unmap = [&](auto range) {
    auto [bytes, tag] = range->second;
    // Only its own owner has written to it.
    CHECK_EQUAL(static_cast<int>(range->first[0]), static_cast<int>(tag));
    CHECK_EQUAL(static_cast<int>(range->first[bytes - 1]), static_cast<int>(tag));
    CHECK_OK(driver().memory_unmap(0, range->first, bytes));
    live.erase(range);
  };
  for (int i = 0; i < 1500 / kScale; ++i) {
    size_t bytes = unit * (1 + random() % 8);
    void* address = nullptr;
    npu_status status = driver().memory_map(0, bytes, &address);
    if (status == NPU_OK) {
      auto* begin = static_cast<unsigned char*>(address);
      CHECK_EQUAL(static_cast<int>(begin[0]), 0);
      CHECK_EQUAL(static_cast<int>(begin[bytes - 1]), 0);
      auto tag = static_cast<unsigned char>(1 + random() % 255);
      begin[0] = begin[bytes - 1] = tag;
      auto [entry, added] = live.emplace(begin, std::make_pair(bytes, tag));
      CHECK(added);
      if (std::next(entry) != live.end()) CHECK(begin + bytes <= std::next(entry)->first);
      if (entry != live.begin()) CHECK(std::prev(entry)->first + std::prev(entry)->second.first <= begin);
    } else {
      CHECK_EQUAL(status, NPU_ERROR_OUT_OF_MEMORY);
    }
    if (status != NPU_OK || random() % 3 == 0)
      unmap(std::next(live.begin(), static_cast<long>(random() % live.size())));
  }
  while (!live.empty()) unmap(live.begin());
  CHECK_EQUAL(free_bytes(), before);
  void* whole = nullptr;  // all pieces have grown together again
  CHECK_OK(driver().memory_map(0, before, &whole));
  CHECK_OK(driver().memory_unmap(0, whole, before));
}

DRIVER_CASE(many_threads_map_and_unmap) {
  size_t unit = granularity(), before = free_bytes();
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200 / kScale; ++i) {
        void* address = nullptr;
        if (driver().memory_map(0, unit, &address) != NPU_OK) {
          ++wrong;
          continue;
        }
        auto* bytes = static_cast<unsigned char*>(address);
        if (bytes[unit / 2] != 0) ++wrong;
        bytes[unit / 2] = static_cast<unsigned char>(t + 1);
        std::this_thread::yield();
        if (bytes[unit / 2] != t + 1) ++wrong;
        if (driver().memory_unmap(0, address, unit) != NPU_OK) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK_EQUAL(wrong.load(), 0);
  CHECK_EQUAL(free_bytes(), before);
}

DRIVER_CASE(copies_of_every_size_and_direction) {
  need_devices(2);
  const size_t largest = 5 << 20;
  void* host = nullptr;
  CHECK_OK(driver().host_allocate(2 * largest, &host));
  auto* in = static_cast<unsigned char*>(host);
  auto* out = in + largest;
  DeviceMemory first(largest, 0), second(largest, 1);
  Stream stream;
  std::mt19937 random(7);
  for (size_t i = 0; i < largest; ++i) in[i] = static_cast<unsigned char>(random());
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{63}, size_t{4096}, (size_t{1} << 20) - 1, size_t{1} << 20,
                       (size_t{1} << 20) + 1, largest}) {
    memset(out, 0, largest);
    CHECK_OK(driver().memory_copy(stream, first.address, in, bytes));
    CHECK_OK(driver().memory_copy(stream, second.address, first.address, bytes));
    CHECK_OK(driver().memory_copy(stream, out, second.address, bytes));
    synchronize(stream);
    CHECK_EQUAL(memcmp(in, out, bytes), 0);
    CHECK(all_are(out + bytes, largest - bytes, 0));
  }
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{100}, largest}) {
    CHECK_OK(driver().memory_set(stream, first.address, 0x11, largest));
    CHECK_OK(driver().memory_set(stream, first.address, 0x1F2, bytes));  // the low byte counts, as for memset
    synchronize(stream);
    CHECK(all_are(first.data(), bytes, 0xF2));
    CHECK(all_are(first.data() + bytes, largest - bytes, 0x11));
  }
  CHECK_OK(driver().host_free(host, 2 * largest));
}

DRIVER_CASE(host_memory_is_given_and_taken_back) {
  for (size_t bytes : {size_t{1}, size_t{4096}, size_t{100000}, size_t{8} << 20}) {
    void* address = nullptr;
    CHECK_OK(driver().host_allocate(bytes, &address));
    CHECK_EQUAL(reinterpret_cast<uintptr_t>(address) % 64, 0);
    memset(address, 1, bytes);
    CHECK_OK(driver().host_free(address, bytes));
  }
  void* address = nullptr;
  CHECK_EQUAL(driver().host_allocate(size_t{1} << 60, &address), NPU_ERROR_OUT_OF_MEMORY);
}

}  // namespace npu::conformance
