// Threads of the driver: named, deaf to signals, and aware of what they are.
#pragma once

#include <pthread.h>
#include <signal.h>

#include <string>
#include <thread>
#include <utility>

namespace npu::host {

class Stream;

// What the calling thread is, to refuse waits that could never end.
struct ThreadRole {
  bool is_engine = false;          // compute or copy engine: streams wait for it
  const Stream* stream = nullptr;  // the blocking thread of this stream
};
inline ThreadRole& thread_role() {
  thread_local ThreadRole role;
  return role;
}

// Throws std::system_error when the system has no thread left.
template <typename Body>
std::thread start_thread(std::string name, ThreadRole role, Body body) {
  // Signals are for the application's threads; a new thread inherits the mask of its creator.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  struct Restore {
    sigset_t* mask;
    ~Restore() { pthread_sigmask(SIG_SETMASK, mask, nullptr); }
  } restore{&before};
  return std::thread([name = std::move(name), role, body = std::move(body)] {
    pthread_setname_np(pthread_self(), name.c_str());
    thread_role() = role;
    body();
  });
}

}  // namespace npu::host
