#pragma once
// Each test runs in a process of its own, forked before anything touches the runtime, with its own environment: the
// runtime reads its configuration once per process.
#include <cstdlib>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace npu::test {

using Environment = std::vector<std::pair<const char*, const char*>>;

struct Test {
  const char* name;
  Environment environment;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registration {
  Registration(const char* name, Environment environment, void (*body)()) {
    tests().push_back({name, std::move(environment), body});
  }
};

struct Failure {
  std::string text;
};

template <typename A, typename B>
void check_equal(const A& got, const B& expected, const char* expression, const char* file, int line) {
  if (got == expected) return;
  std::ostringstream text;
  text << file << ":" << line << ": " << expression << " is " << got << ", expected " << expected;
  throw Failure{text.str()};
}

inline void check_that(bool holds, const char* expression, const char* file, int line) {
  if (!holds) throw Failure{std::string(file) + ":" + std::to_string(line) + ": not true: " + expression};
}

template <typename Error, typename Body>
void check_throws(Body body, const std::string& part, const char* expression, const char* file, int line) {
  const std::string where = std::string(file) + ":" + std::to_string(line) + ": " + expression;
  try {
    body();
  } catch (const Error& error) {
    if (std::string(error.what()).find(part) == std::string::npos)
      throw Failure{where + " threw '" + error.what() + "', which lacks '" + part + "'"};
    return;
  } catch (const std::exception& error) {
    throw Failure{where + " threw another type: " + error.what()};
  }
  throw Failure{where + " did not throw"};
}

}  // namespace npu::test

#define NPU_TEST(name, ...)                                                                \
  static void name();                                                                      \
  static const ::npu::test::Registration name##_registration(#name, {__VA_ARGS__}, &name); \
  static void name()
#define CHECK_EQ(got, expected) ::npu::test::check_equal((got), (expected), #got, __FILE_NAME__, __LINE__)
#define CHECK(expression) ::npu::test::check_that((expression), #expression, __FILE_NAME__, __LINE__)
#define CHECK_THROWS(Error, statement, part) \
  ::npu::test::check_throws<Error>([&] { statement; }, part, #statement, __FILE_NAME__, __LINE__)
