// npu_runtime_tests [--list | name | part of names]: runs the test of that name, or else all whose name contains the
// argument, each in its own process.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "harness.h"

namespace {

using npu::test::Test;

int run_here(const Test& test) {
  for (const auto& [name, value] : test.environment) setenv(name, value, 1);
  alarm(120);  // a test that hangs is a failed one
  try {
    test.body();
    return 0;
  } catch (const npu::test::Failure& failure) {
    std::cerr << failure.text << std::endl;
  } catch (const std::exception& error) {
    std::cerr << "threw " << error.what() << std::endl;
  }
  return 1;
}

bool run_apart(const Test& test) {
  const pid_t child = fork();
  if (child == 0) {
    // exit, not _exit: the sanitizers report there.
    std::exit(run_here(test));
  }
  int status = 0;
  waitpid(child, &status, 0);
  const bool passed = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  std::printf("%s %s", passed ? "ok    " : "FAILED", test.name);
  if (WIFSIGNALED(status)) std::printf(" (signal %d)", WTERMSIG(status));
  std::printf("\n");
  std::fflush(stdout);
  return passed;
}

}  // namespace

int main(int argc, char** argv) {
  const char* filter = argc > 1 ? argv[1] : "";
  if (std::strcmp(filter, "--list") == 0) {
    for (const Test& test : npu::test::tests()) std::puts(test.name);
    return 0;
  }
  bool exact = false;
  for (const Test& test : npu::test::tests()) exact |= std::strcmp(test.name, filter) == 0;
  setenv("NPU_DRIVER", "manual", 1);
  unsetenv("PYTORCH_ALLOC_CONF");
  unsetenv("PYTORCH_NPU_ALLOC_CONF");
  int run = 0;
  int failed = 0;
  for (const Test& test : npu::test::tests()) {
    if (exact ? std::strcmp(test.name, filter) != 0 : std::strstr(test.name, filter) == nullptr) continue;
    ++run;
    failed += run_apart(test) ? 0 : 1;
  }
  std::printf("%d tests, %d failed\n", run, failed);
  return failed == 0 && run != 0 ? 0 : 1;
}
