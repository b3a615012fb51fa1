#include "wait.h"

#include <atomic>

namespace npu {
namespace {

std::atomic<InterruptCheck> g_interrupt_check{nullptr};

}  // namespace

void set_interrupt_check(InterruptCheck check) noexcept { g_interrupt_check.store(check, std::memory_order_release); }

InterruptCheck interrupt_check() noexcept { return g_interrupt_check.load(std::memory_order_acquire); }

}  // namespace npu
