#include "runtime/options.h"

#include <c10/util/Exception.h>

#include <cstring>
#include <thread>
#include <vector>

#include "harness.h"

NPU_TEST(options_hold_strings) {
  CHECK(!npu::get_option("A").has_value());
  CHECK(npu::get_option_cstr("A") == nullptr);
  npu::set_option("A", "one");
  const char* first = npu::get_option_cstr("A");
  npu::set_option("A", "two");
  CHECK_EQ(npu::get_option("A").value(), "two");
  CHECK(std::strcmp(first, "one") == 0);  // old pointers stay readable
  npu::set_option("A", "one");
  CHECK(npu::get_option_cstr("A") == first);
}

NPU_TEST(callbacks_see_every_change_and_may_set_options) {
  std::vector<std::string> seen;
  npu::on_option_change("A", [&](const std::string& value) {
    seen.push_back(value);
    npu::set_option("B", value + "!");
  });
  npu::set_option("A", "1");
  npu::set_option("C", "x");
  npu::set_option("A", "1");
  CHECK(seen == (std::vector<std::string>{"1", "1"}));
  CHECK_EQ(npu::get_option("B").value(), "1!");
}

NPU_TEST(options_from_many_threads) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([t] {
      for (int i = 0; i < 2000; ++i) {
        npu::set_option("shared", std::to_string((i + t) % 10));
        const char* value = npu::get_option_cstr("shared");
        CHECK(std::strlen(value) == 1);
      }
    });
  for (std::thread& thread : threads) thread.join();
}

NPU_TEST(environment_flags, {"NPU_TEST_ON", "1"}, {"NPU_TEST_OFF", "0"}, {"NPU_TEST_EMPTY", ""},
         {"NPU_TEST_BAD", "on"}) {
  CHECK(npu::env_flag("NPU_TEST_ON", false));
  CHECK(!npu::env_flag("NPU_TEST_OFF", true));
  CHECK(npu::env_flag("NPU_TEST_EMPTY", true));
  CHECK(npu::env_flag("NPU_TEST_UNSET", true));
  CHECK_THROWS(c10::Error, npu::env_flag("NPU_TEST_BAD", true), "NPU_TEST_BAD should be 0 or 1, but got 'on'");
}
