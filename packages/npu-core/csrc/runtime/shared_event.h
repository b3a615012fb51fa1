#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "shared_page.h"
#include "stream.h"

namespace npu {

// An event that several processes record and wait for.  Its state is a cell of a page of the process that made it; it
// can be opened while that process and its own event live, and used for as long as anybody holds it.
class SharedEvent {
 public:
  static std::unique_ptr<SharedEvent> create(int device);
  // Throws when the handle is none, or the event is gone.
  static std::unique_ptr<SharedEvent> open(std::string_view handle);
  SharedEvent(const SharedEvent&) = delete;
  SharedEvent& operator=(const SharedEvent&) = delete;
  ~SharedEvent();

  // Plain bytes for other processes of the user on this machine.
  std::string handle() const;
  int device() const { return device_; }

  void record(Stream* stream);
  // Later work of `stream` waits for what was recorded last when this is called; no-op before the first record.
  void wait(Stream* stream) const;
  bool query() const;
  void synchronize() const;

 private:
  struct Cell;
  struct Handle;
  SharedEvent(std::shared_ptr<SharedPage> page, std::uint32_t index, std::uint64_t serial, int device);
  Cell& cell() const;
  static bool await(const SharedPage& page, std::uint32_t index, std::uint64_t target, std::int32_t* ended);

  std::shared_ptr<SharedPage> page_;
  std::uint32_t index_;
  std::uint64_t serial_;
  int device_;
};

}  // namespace npu
