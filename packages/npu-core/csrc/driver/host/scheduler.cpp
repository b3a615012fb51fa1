#include "scheduler.h"

#include <system_error>

#include "compute_engine.h"
#include "copy_engine.h"
#include "error.h"
#include "stream.h"

namespace npu::host {

void dispatch(Stream& stream) {
  stream.retain();
  npu_error unused;  // signals do not fail
  Outcome outcome;
  do {
    outcome = stream.run(kSignals, unused, [] { return false; });
  } while (outcome == Outcome::drained && !stream.set_free());
  if (outcome == Outcome::hand_over) hand_over(stream);
  stream.release();
}

void hand_over(Stream& stream) {
  Device& device = stream.device();
  try {
    switch (stream.next_kind()) {
      case kCopySlot:
        device.copy_engine.serve(stream);
        return;
      case kBlockingSlot:
        stream.own_thread().serve();
        return;
      default:
        break;
    }
  } catch (const std::system_error& error) {
    stream.strand(error.what());
  }
  device.compute_engine.serve(stream);
}

void complete_marker(Marker* marker) {
  // A resumed stream may complete further markers.  They queue up here instead of nesting, so that a chain of any
  // length needs no stack.
  struct Resumed {
    Stream* first = nullptr;
    bool busy = false;
  };
  thread_local Resumed resumed;

  Stream* parked = marker->complete();
  while (parked != nullptr) {
    Stream* following = parked->next;
    parked->next = resumed.first;
    resumed.first = parked;
    parked = following;
  }
  if (resumed.busy) return;
  resumed.busy = true;
  while (resumed.first != nullptr) {
    Stream& stream = *resumed.first;
    resumed.first = stream.next;
    dispatch(stream);
  }
  resumed.busy = false;
}

}  // namespace npu::host
