/* npu/kernels/isa.h: which build of a kernel this CPU runs.
 *
 * A kernel family is compiled once per instruction set it has something for, each build giving one table of function
 * pointers.  KernelTables picks the best table that the CPU, the operating system and NPU_CPU_ISA allow.
 *
 *   static const KernelTables<MyKernels> tables = {&my_kernels_base, &my_kernels_avx2, &my_kernels_avx512};
 *   tables.active().forward(...);
 *
 * For the ordinary files of a wheel, not for kernel files (those are compiled for the instruction set itself).
 */
#ifndef NPU_KERNELS_ISA_H_
#define NPU_KERNELS_ISA_H_

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace npu::kernels {

/// Instruction sets, each one including those before it.
enum class Isa : int {
  base = 0,     ///< x86-64 (SSE2), or whatever the compiler's default is elsewhere
  avx2,         ///< x86-64-v3: AVX2, FMA, F16C
  avx512,       ///< x86-64-v4: AVX-512 F, BW, CD, DQ, VL
  avx512_bf16,  ///< and AVX512_BF16, AVX512_VNNI
  amx,          ///< and AMX TILE, BF16, INT8, with the kernel's permission to use the tiles
};
inline constexpr int kIsaCount = 5;

inline const char* isa_name(Isa isa) {
  static constexpr const char* kNames[kIsaCount] = {"base", "avx2", "avx512", "avx512_bf16", "amx"};
  return kNames[static_cast<int>(isa)];
}

/// The instruction set called `name`; throws std::runtime_error that lists the names.
inline Isa isa_from_name(const char* name) {
  std::string names;
  for (int i = 0; i < kIsaCount; ++i) {
    if (std::strcmp(name, isa_name(static_cast<Isa>(i))) == 0) return static_cast<Isa>(i);
    names += (i ? ", " : "") + std::string(isa_name(static_cast<Isa>(i)));
  }
  throw std::runtime_error(std::string("NPU_CPU_ISA should be one of ") + names + ", but got \"" + name + "\"");
}

/// Asks Linux to let this process use the AMX tile registers (their state enlarges every signal frame, so the kernel
/// wants to be asked).  Threads created later inherit the permission.
inline bool request_amx_permission() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kArchGetXcompPerm = 0x1022, kArchReqXcompPerm = 0x1023, kXtileData = 18;
  if (syscall(SYS_arch_prctl, kArchReqXcompPerm, kXtileData) != 0) return false;
  unsigned long granted = 0;
  return syscall(SYS_arch_prctl, kArchGetXcompPerm, &granted) == 0 && ((granted >> kXtileData) & 1) != 0;
#else
  return false;
#endif
}

/// The best instruction set of this machine.
inline Isa detect_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();  // __builtin_cpu_supports also checks that the operating system saves the registers
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
        __builtin_cpu_supports("bmi2"))) {
    return Isa::base;
  }
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C) || !(c & bit_MOVBE)) return Isa::base;
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))) {
    return Isa::avx2;
  }
  if (!(__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16"))) return Isa::avx512;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  constexpr unsigned kAmx = kAmxBf16 | kAmxTile | kAmxInt8;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAmx) != kAmx) return Isa::avx512_bf16;
  return request_amx_permission() ? Isa::amx : Isa::avx512_bf16;
#else
  return Isa::base;
#endif
}

/// The best instruction set of this machine, found out once.
inline Isa cpu_isa() {
  static const Isa isa = detect_isa();
  return isa;
}

/// The cap in force: what the CPU has, lowered by the environment variable NPU_CPU_ISA and by limit_isa().  A cap above
/// what the CPU has changes nothing, so one setting fits a mixed cluster.
inline std::atomic<int>& isa_cap() {
  static std::atomic<int> cap = [] {
    const char* wanted = std::getenv("NPU_CPU_ISA");
    int best = static_cast<int>(cpu_isa());
    if (wanted == nullptr || wanted[0] == '\0') return best;
    int named = static_cast<int>(isa_from_name(wanted));
    return named < best ? named : best;
  }();
  return cap;
}

/// Lowers or raises the cap at run time (tests run every table with it); never above what the CPU has.
inline Isa limit_isa(Isa isa) {
  int best = static_cast<int>(cpu_isa()), wanted = static_cast<int>(isa);
  isa_cap().store(wanted < best ? wanted : best, std::memory_order_relaxed);
  return static_cast<Isa>(isa_cap().load(std::memory_order_relaxed));
}

/// The tables of one kernel family in the order of Isa; a family leaves out what it has no build for.
template <class Table>
struct KernelTables {
  const Table* by_isa[kIsaCount];

  /// The best table under the cap.  A few nanoseconds.  Throws only when NPU_CPU_ISA is not a name.
  const Table& active() const {
    int isa = isa_cap().load(std::memory_order_relaxed);
    while (by_isa[isa] == nullptr && isa > 0) --isa;
    return *by_isa[isa];
  }
};

}  // namespace npu::kernels

#endif  // NPU_KERNELS_ISA_H_
