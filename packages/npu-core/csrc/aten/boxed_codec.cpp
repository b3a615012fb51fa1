#include "boxed_codec.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/List.h>
#include <ATen/core/jit_type.h>

#include <string>

namespace npu::aten {
namespace {

enum class Tag : std::int64_t {
  kNone,
  kTensor,
  kTensorList,
  kOptionalTensorList,
  kInt,
  kDouble,
  kBool,
  kComplex,
  kString,
  kIntList,
  kDoubleList,
  kBoolList,
  kNumberList,
  kDevice,
  kGenerator
};

bool is_number_list(const c10::IValue& value) {
  return value.isList() && value.toListRef().size() > 0 && value.toListRef()[0].isScalar();
}

template <class List>
void encode_list(TaskWriter& writer, Tag tag, const List& list) {
  writer.value(tag);
  writer.value(static_cast<std::int64_t>(list.size()));
}

c10::List<at::Tensor> decode_tensors(TaskReader& reader) {
  c10::List<at::Tensor> list;
  const auto count = reader.value<std::int64_t>();
  list.reserve(static_cast<size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) list.push_back(reader.tensor());
  return list;
}

c10::List<std::optional<at::Tensor>> decode_optional_tensors(TaskReader& reader) {
  c10::List<std::optional<at::Tensor>> list;
  const auto count = reader.value<std::int64_t>();
  for (std::int64_t i = 0; i < count; ++i) {
    const at::Tensor& t = reader.tensor();
    list.push_back(t.defined() ? std::optional<at::Tensor>(t) : std::nullopt);
  }
  return list;
}

template <class T>
c10::List<T> decode_plain_list(TaskReader& reader) {
  c10::List<T> list;
  for (const auto& v : reader.array<T>()) list.push_back(v);
  return list;
}

}  // namespace

bool can_encode(const c10::IValue& value) {
  return value.isNone() || value.isTensor() || value.isTensorList() || value.isOptionalTensorList() || value.isInt() ||
         value.isDouble() || value.isBool() || value.isComplexDouble() || value.isString() || value.isIntList() ||
         value.isDoubleList() || value.isBoolList() || is_number_list(value) || value.isDevice();
}

void encode_value(TaskWriter& writer, const c10::IValue& value) {
  if (value.isTensor()) {
    writer.value(Tag::kTensor);
    writer.tensor(value.toTensor());
  } else if (value.isNone()) {
    writer.value(Tag::kNone);
  } else if (value.isInt()) {
    writer.value(Tag::kInt);
    writer.value(value.toInt());
  } else if (value.isDouble()) {
    writer.value(Tag::kDouble);
    writer.value(value.toDouble());
  } else if (value.isBool()) {
    writer.value(Tag::kBool);
    writer.value(static_cast<std::int64_t>(value.toBool()));
  } else if (value.isComplexDouble()) {
    writer.value(Tag::kComplex);
    writer.value(value.toComplexDouble());
  } else if (value.isString()) {
    writer.value(Tag::kString);
    const auto& text = value.toStringRef();
    writer.array(c10::ArrayRef<char>(text.data(), text.size()));
  } else if (value.isTensorList()) {
    const auto list = value.toTensorList();
    encode_list(writer, Tag::kTensorList, list);
    for (const at::Tensor& t : list) writer.tensor(t);
  } else if (value.isOptionalTensorList()) {
    const auto list = value.toOptionalTensorList();
    encode_list(writer, Tag::kOptionalTensorList, list);
    for (const std::optional<at::Tensor>& t : list) writer.tensor(t ? *t : at::Tensor());
  } else if (value.isIntList()) {
    writer.value(Tag::kIntList);
    const auto list = value.toIntVector();
    writer.array(c10::ArrayRef<std::int64_t>(list));
  } else if (value.isDoubleList()) {
    writer.value(Tag::kDoubleList);
    const auto list = value.toDoubleVector();
    writer.array(c10::ArrayRef<double>(list));
  } else if (value.isBoolList()) {
    writer.value(Tag::kBoolList);
    c10::SmallVector<bool, 8> list;
    for (const bool b : value.toBoolList()) list.push_back(b);
    writer.array(c10::ArrayRef<bool>(list));
  } else if (value.isDevice()) {
    writer.value(Tag::kDevice);
  } else {
    TORCH_INTERNAL_ASSERT(is_number_list(value), "npu: a ", value.tagKind(), " cannot cross to the engine");
    const auto list = value.toListRef();
    encode_list(writer, Tag::kNumberList, list);
    for (const auto& number : list) Codec<at::Scalar>::encode(writer, number.toScalar());
  }
}

void encode_generator(TaskWriter& writer, std::uint64_t seed) {
  writer.value(Tag::kGenerator);
  writer.value(seed);
}

c10::IValue decode_value(TaskReader& reader) {
  switch (reader.value<Tag>()) {
    case Tag::kNone:
      return {};
    case Tag::kTensor:
      return reader.tensor();
    case Tag::kTensorList:
      return decode_tensors(reader);
    case Tag::kOptionalTensorList:
      return decode_optional_tensors(reader);
    case Tag::kInt:
      return reader.value<std::int64_t>();
    case Tag::kDouble:
      return reader.value<double>();
    case Tag::kBool:
      return reader.value<std::int64_t>() != 0;
    case Tag::kComplex:
      return reader.value<c10::complex<double>>();
    case Tag::kString: {
      const auto text = reader.array<char>();
      return std::string(text.data(), text.size());
    }
    case Tag::kIntList:
      return decode_plain_list<std::int64_t>(reader);
    case Tag::kDoubleList:
      return decode_plain_list<double>(reader);
    case Tag::kBoolList:
      return decode_plain_list<bool>(reader);
    case Tag::kNumberList: {
      c10::impl::GenericList list(c10::NumberType::get());
      const auto count = reader.value<std::int64_t>();
      for (std::int64_t i = 0; i < count; ++i) list.push_back(Codec<at::Scalar>::decode(reader).get());
      return list;
    }
    case Tag::kDevice:
      return c10::Device(c10::kCPU);
    case Tag::kGenerator:
      return at::detail::createCPUGenerator(reader.value<std::uint64_t>());
  }
  TORCH_INTERNAL_ASSERT(false, "npu: unknown tag in a boxed task");
}

}  // namespace npu::aten
