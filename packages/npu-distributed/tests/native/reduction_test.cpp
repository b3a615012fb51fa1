// Every reduction kernel of every instruction set this CPU has, against a scalar reference in double precision.
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "collectives/reduction.h"

using namespace npu::distributed;

namespace {

int failures = 0;

void Check(bool condition, const std::string& what) {
  if (condition) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

// Reference conversions, written for clarity and independent of the kernels'.
double DecodeHalf(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa != 0 ? std::nan("") : sign * HUGE_VAL;
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

double DecodeBrain(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value = 0;
  std::memcpy(&value, &wide, 4);
  return value;
}

/// The closest 16-bit pattern, found by trying them: ties go to the even one.
template <class Decode>
uint16_t Nearest(double value, Decode decode, uint16_t infinity) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(value);
  uint16_t low = 0;
  uint16_t high = infinity;
  while (low + 1 < high) {
    const auto middle = static_cast<uint16_t>((low + high) / 2);
    (decode(middle) <= magnitude ? low : high) = middle;
  }
  // The step above the largest finite number rounds to infinity at half of what the next step would be.
  const double above =
      high == infinity ? 2 * decode(static_cast<uint16_t>(infinity - 1)) - decode(static_cast<uint16_t>(infinity - 2))
                       : decode(high);
  const double to_low = magnitude - decode(low);
  const double to_high = above - magnitude;
  const bool up = to_high < to_low || (to_high == to_low && (low & 1) != 0);
  return static_cast<uint16_t>(sign | (up ? high : low));
}

template <class T>
void Run(npu_reduce_fn reduce, std::vector<std::vector<T>>& inputs, std::vector<std::vector<T>>& outputs,
         const std::vector<double>& factors) {
  std::vector<const void*> in;
  std::vector<void*> out;
  for (auto& input : inputs) in.push_back(input.data());
  for (auto& output : outputs) out.push_back(output.data());
  npu_reduce_job job{};
  job.inputs = in.data();
  job.outputs = out.data();
  job.factors = factors.data();
  job.count = inputs[0].size();
  job.input_count = static_cast<int32_t>(in.size());
  job.output_count = static_cast<int32_t>(out.size());
  reduce(&job);
}

template <class T, class Wide>
Wide Reference(ReduceKind kind, const std::vector<Wide>& values) {
  Wide sum = values[0];
  for (size_t k = 1; k < values.size(); ++k) {
    switch (kind) {
      case ReduceKind::kProduct:
        sum = static_cast<Wide>(sum * values[k]);
        break;
      case ReduceKind::kMin:
        sum = values[k] < sum ? values[k] : sum;
        break;
      case ReduceKind::kMax:
        sum = values[k] > sum ? values[k] : sum;
        break;
      default:
        sum = static_cast<Wide>(sum + values[k]);
        break;
    }
  }
  if (kind == ReduceKind::kAverage) sum = static_cast<Wide>(sum / static_cast<Wide>(values.size()));
  return sum;
}

constexpr ReduceKind kKinds[] = {ReduceKind::kSum, ReduceKind::kAverage, ReduceKind::kProduct, ReduceKind::kMin,
                                 ReduceKind::kMax};

template <class T, class Wide>
void TestNumbers(const std::string& isa, ElementType type) {
  for (const ReduceKind kind : kKinds) {
    const npu_reduce_fn reduce = FindReduction(type, kind, isa);
    const std::string name = isa + " " + Name(type) + " " + Name(kind);
    if (reduce == nullptr) {
      Check(false, name + " is missing");
      continue;
    }
    for (const size_t ranks : {1ul, 2ul, 3ul, 5ul}) {
      for (const size_t count : {1ul, 7ul, 63ul, 2048ul, 4100ul}) {
        std::vector<std::vector<T>> inputs(ranks, std::vector<T>(count));
        for (size_t k = 0; k < ranks; ++k) {
          for (size_t i = 0; i < count; ++i) {
            // Small enough that products of five stay exact, signed where the type is.
            const int value = static_cast<int>((i * 5 + k * 3) % 9) - (std::numeric_limits<T>::is_signed ? 4 : 0);
            inputs[k][i] = static_cast<T>(value);
          }
        }
        std::vector<std::vector<T>> outputs(2, std::vector<T>(count));
        Run(reduce, inputs, outputs, {});
        bool same = outputs[0] == outputs[1];
        for (size_t i = 0; i < count; ++i) {
          std::vector<Wide> values;
          for (size_t k = 0; k < ranks; ++k) values.push_back(static_cast<Wide>(inputs[k][i]));
          same = same && outputs[0][i] == static_cast<T>(Reference<T, Wide>(kind, values));
        }
        Check(same, name + " ranks=" + std::to_string(ranks) + " count=" + std::to_string(count));
      }
    }
  }
}

template <class Decode>
void TestHalf(const std::string& isa, ElementType type, Decode decode, uint16_t infinity) {
  // Every bit pattern meets a handful of partners: rounding, subnormals, overflow and NaN are all among them.
  const size_t count = 65536;
  std::vector<std::vector<uint16_t>> inputs(2, std::vector<uint16_t>(count));
  for (const uint32_t partner : {0x0000u, 0x3c01u, 0x0001u, 0x7bffu, 0xbf80u, 0x3f83u}) {
    for (size_t i = 0; i < count; ++i) {
      inputs[0][i] = static_cast<uint16_t>(i);
      inputs[1][i] = static_cast<uint16_t>(partner);
    }
    for (const ReduceKind kind : {ReduceKind::kSum, ReduceKind::kMax, ReduceKind::kPremulSum}) {
      const npu_reduce_fn reduce = FindReduction(type, kind, isa);
      Check(reduce != nullptr, isa + " " + Name(type) + " " + Name(kind) + " is missing");
      if (reduce == nullptr) continue;
      std::vector<std::vector<uint16_t>> outputs(1, std::vector<uint16_t>(count));
      Run(reduce, inputs, outputs, {0.5, 2.0});
      size_t wrong = 0;
      for (size_t i = 0; i < count; ++i) {
        const auto a = static_cast<float>(decode(inputs[0][i]));
        const auto b = static_cast<float>(decode(inputs[1][i]));
        float expected = a + b;
        if (kind == ReduceKind::kMax) expected = (std::isnan(a) || std::isnan(b)) ? std::nanf("") : std::max(a, b);
        if (kind == ReduceKind::kPremulSum) expected = a * 0.5f + b * 2.0f;
        const double got = decode(outputs[0][i]);
        if (std::isnan(expected)) {
          wrong += std::isnan(got) ? 0 : 1;
        } else if (std::isinf(expected)) {
          wrong += got == expected ? 0 : 1;
        } else {
          wrong += got == decode(Nearest(expected, decode, infinity)) ? 0 : 1;
        }
      }
      Check(wrong == 0, isa + " " + Name(type) + " " + Name(kind) + ": " + std::to_string(wrong) + " wrong patterns");
    }
  }
}

void TestWrapAndAverage(const std::string& isa) {
  std::vector<std::vector<uint8_t>> bytes = {{200, 255}, {100, 255}};
  std::vector<std::vector<uint8_t>> out(1, std::vector<uint8_t>(2));
  Run(FindReduction(ElementType::kUInt8, ReduceKind::kSum, isa), bytes, out, {});
  Check(out[0][0] == 44 && out[0][1] == 254, isa + " uint8 sums wrap");
  Run(FindReduction(ElementType::kUInt8, ReduceKind::kAverage, isa), bytes, out, {});
  Check(out[0][0] == 150 && out[0][1] == 255, isa + " uint8 averages do not wrap");
  std::vector<std::vector<int32_t>> ints = {{-3, 3}, {0, 4}};
  std::vector<std::vector<int32_t>> quotient(1, std::vector<int32_t>(2));
  Run(FindReduction(ElementType::kInt32, ReduceKind::kAverage, isa), ints, quotient, {});
  Check(quotient[0][0] == -1 && quotient[0][1] == 3, isa + " integer averages truncate");
  std::vector<std::vector<uint8_t>> flags = {{0, 1, 0, 1}, {0, 0, 1, 1}};
  std::vector<std::vector<uint8_t>> flag(1, std::vector<uint8_t>(4));
  Run(FindReduction(ElementType::kBool, ReduceKind::kSum, isa), flags, flag, {});
  Check(flag[0] == std::vector<uint8_t>({0, 1, 1, 1}), isa + " bool SUM is or");
  Run(FindReduction(ElementType::kBool, ReduceKind::kProduct, isa), flags, flag, {});
  Check(flag[0] == std::vector<uint8_t>({0, 0, 0, 1}), isa + " bool PRODUCT is and");
}

void TestInPlace(const std::string& isa) {
  const npu_reduce_fn reduce = FindReduction(ElementType::kFloat32, ReduceKind::kSum, isa);
  for (const size_t ranks : {2ul, 3ul}) {
    std::vector<std::vector<float>> data(ranks, std::vector<float>(5000));
    for (size_t k = 0; k < ranks; ++k) {
      for (size_t i = 0; i < 5000; ++i) data[k][i] = static_cast<float>(i + k);
    }
    Run(reduce, data, data, {});
    bool same = true;
    for (size_t i = 0; i < 5000; ++i) {
      const auto expected = static_cast<float>(ranks * i + ranks * (ranks - 1) / 2);
      for (size_t k = 0; k < ranks; ++k) same = same && data[k][i] == expected;
    }
    Check(same, isa + " in place, ranks=" + std::to_string(ranks));
  }
}

/// Elements that every sum and product of three represents without NaN.
std::vector<std::byte> Operand(ElementType type, size_t rank, size_t count) {
  std::vector<std::byte> bytes(count * SizeOf(type));
  for (size_t i = 0; i < count; ++i) {
    const size_t mixed = i * 37 + rank * 11;
    std::byte* at = bytes.data() + i * SizeOf(type);
    const auto put = [&](auto value) { std::memcpy(at, &value, sizeof value); };
    switch (type) {
      case ElementType::kFloat32:
        put(static_cast<float>(mixed % 997) / 64.0f - 5.0f);
        break;
      case ElementType::kFloat64:
        put(static_cast<double>(mixed % 997) / 63.0 - 5.0);
        break;
      case ElementType::kFloat16:
        put(static_cast<uint16_t>(0x3c00 + mixed % 1000 + (mixed % 3 == 0 ? 0x8000 : 0)));
        break;
      case ElementType::kBFloat16:
        put(static_cast<uint16_t>(0x3f80 + mixed % 300 + (mixed % 3 == 0 ? 0x8000 : 0)));
        break;
      case ElementType::kBool:
        put(static_cast<uint8_t>(mixed / 3 % 2));
        break;
      default:
        for (size_t byte = 0; byte < SizeOf(type); ++byte) at[byte] = static_cast<std::byte>(mixed * 7 + byte * 91);
    }
  }
  return bytes;
}

/// Two operands in one place and one in another give the bits of all three in one: the order is the same.
void TestTwoSteps(const std::string& isa) {
  const size_t count = 5003;
  const double factors[] = {0.5, 1.25, 3.0};
  for (size_t number = 0; number < kElementTypeCount; ++number) {
    const auto type = static_cast<ElementType>(number);
    for (size_t kind_number = 0; kind_number < kReduceKindCount; ++kind_number) {
      const auto kind = static_cast<ReduceKind>(kind_number);
      const npu_reduce_fn reduce = FindReduction(type, kind, isa);
      const TwoStepReduction steps = FindTwoStepReduction(type, kind, isa);
      const std::string what = isa + " " + Name(type) + " " + Name(kind) + " in two steps";
      Check((reduce == nullptr) == (steps.partial == nullptr), what + ": there is one and not the other");
      if (reduce == nullptr || steps.partial == nullptr) continue;
      std::vector<std::byte> operands[3];
      for (size_t rank = 0; rank < 3; ++rank) operands[rank] = Operand(type, rank, count);
      const void* inputs[] = {operands[0].data(), operands[1].data(), operands[2].data()};
      std::vector<std::byte> expected(count * SizeOf(type));
      std::vector<std::byte> got[2] = {expected, expected};
      std::vector<std::byte> partials[2];
      const auto run = [&](npu_reduce_fn kernel, const void* const* from, int from_count, void* const* to, int to_count,
                           const double* own_factors) {
        npu_reduce_job job{};
        job.inputs = from;
        job.input_count = from_count;
        job.outputs = to;
        job.output_count = to_count;
        job.factors = own_factors;
        job.count = count;
        job.divisor = 3;
        kernel(&job);
      };
      void* one = expected.data();
      run(reduce, inputs, 3, &one, 1, factors);
      for (std::vector<std::byte>& partial : partials) partial.resize(count * steps.partial_bytes);
      void* places[] = {partials[0].data(), partials[1].data()};
      run(steps.partial, inputs, 2, &places[0], 1, factors);
      run(steps.partial, inputs + 2, 1, &places[1], 1, factors + 2);
      void* outputs[] = {got[0].data(), got[1].data()};
      run(steps.finish, places, 2, outputs, 2, nullptr);
      Check(got[0] == expected && got[1] == expected, what + ": other bits than in one");
    }
  }
}

}  // namespace

int main() {
  for (const std::string& isa : AvailableIsas()) {
    TestNumbers<int8_t, int32_t>(isa, ElementType::kInt8);
    TestNumbers<uint8_t, uint32_t>(isa, ElementType::kUInt8);
    TestNumbers<int16_t, int32_t>(isa, ElementType::kInt16);
    TestNumbers<uint16_t, uint32_t>(isa, ElementType::kUInt16);
    TestNumbers<int32_t, int32_t>(isa, ElementType::kInt32);
    TestNumbers<uint32_t, uint32_t>(isa, ElementType::kUInt32);
    TestNumbers<int64_t, int64_t>(isa, ElementType::kInt64);
    TestNumbers<uint64_t, uint64_t>(isa, ElementType::kUInt64);
    TestNumbers<float, float>(isa, ElementType::kFloat32);
    TestNumbers<double, double>(isa, ElementType::kFloat64);
    TestHalf(isa, ElementType::kFloat16, DecodeHalf, 0x7c00);
    TestHalf(isa, ElementType::kBFloat16, DecodeBrain, 0x7f80);
    TestWrapAndAverage(isa);
    TestInPlace(isa);
    TestTwoSteps(isa);
    std::printf("reductions %-8s done\n", isa.c_str());
  }
  Check(FindReduction(ElementType::kFloat8E4M3, ReduceKind::kSum) == nullptr, "float8 has no reductions");
  Check(FindReduction(ElementType::kInt32, ReduceKind::kPremulSum) == nullptr, "int32 has no PREMUL_SUM");
  return failures == 0 ? 0 : 1;
}
