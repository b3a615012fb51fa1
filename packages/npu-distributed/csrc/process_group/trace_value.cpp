#include "process_group/trace_value.h"

#include <bit>
#include <cmath>
#include <cstdio>

namespace npu::distributed {
namespace {

void AppendQuoted(std::string& out, const std::string& text) {
  out += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", byte);
      out += escape;
    } else {
      out += c;  // UTF-8 passes as it is
    }
  }
  out += '"';
}

template <class Integer>
void AppendLittleEndian(std::string& out, Integer value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) out += static_cast<char>((static_cast<uint64_t>(value) >> (8 * i)) & 0xff);
}

void AppendPickledText(std::string& out, const std::string& text) {
  out += 'X';  // BINUNICODE
  AppendLittleEndian(out, text.size(), 4);
  out += text;
}

void AppendPickledInteger(std::string& out, int64_t value) {
  out += '\x8a';  // LONG1
  out += '\x08';
  AppendLittleEndian(out, value, 8);
}

void AppendPickledDouble(std::string& out, double value) {
  out += 'G';  // BINFLOAT, big-endian
  const auto bits = std::bit_cast<uint64_t>(value);
  for (int shift = 56; shift >= 0; shift -= 8) out += static_cast<char>((bits >> shift) & 0xff);
}

template <class... Cases>
struct Overloaded : Cases... {
  using Cases::operator()...;
};

}  // namespace

std::string TraceValue::Json() const {
  std::string out;
  AppendJson(out);
  return out;
}

std::string TraceValue::Pickle() const {
  std::string out = "\x80\x02";  // PROTO 2
  AppendPickle(out);
  out += '.';  // STOP
  return out;
}

void TraceValue::AppendJson(std::string& out) const {
  const auto list = [&out](const List& items) {
    out += '[';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i != 0) out += ',';
      items[i].AppendJson(out);
    }
    out += ']';
  };
  std::visit(Overloaded{
                 [&](std::monostate) { out += "null"; },
                 [&](bool value) { out += value ? "true" : "false"; },
                 [&](int64_t value) { out += std::to_string(value); },
                 [&](double value) {
                   char text[32];
                   std::snprintf(text, sizeof text, "%.9g", value);
                   out += std::isfinite(value) ? text : "null";
                 },
                 [&](const std::string& text) { AppendQuoted(out, text); },
                 list,
                 [&](const Tuple& tuple) { list(tuple.items); },
                 [&](const Dict& items) {
                   out += '{';
                   for (size_t i = 0; i < items.size(); ++i) {
                     if (i != 0) out += ',';
                     AppendQuoted(out, items[i].first);
                     out += ':';
                     items[i].second.AppendJson(out);
                   }
                   out += '}';
                 },
             },
             value_);
}

void TraceValue::AppendPickle(std::string& out) const {
  std::visit(Overloaded{
                 [&](std::monostate) { out += 'N'; },
                 [&](bool value) { out += value ? '\x88' : '\x89'; },
                 [&](int64_t value) { AppendPickledInteger(out, value); },
                 [&](double value) { AppendPickledDouble(out, value); },
                 [&](const std::string& text) { AppendPickledText(out, text); },
                 [&](const List& items) {
                   out += "](";  // EMPTY_LIST MARK
                   for (const TraceValue& item : items) item.AppendPickle(out);
                   out += 'e';  // APPENDS
                 },
                 [&](const Tuple& tuple) {
                   out += '(';
                   for (const TraceValue& item : tuple.items) item.AppendPickle(out);
                   out += 't';  // TUPLE
                 },
                 [&](const Dict& items) {
                   out += "}(";  // EMPTY_DICT MARK
                   for (const auto& [key, item] : items) {
                     AppendPickledText(out, key);
                     item.AppendPickle(out);
                   }
                   out += 'u';  // SETITEMS
                 },
             },
             value_);
}

}  // namespace npu::distributed
