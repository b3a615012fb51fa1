// npu_driver_conformance [--driver host|library] [--list] [--measure] [case ...]
//
// Runs the named cases, or all of them, each in a process of its own.  Exit status: 0 passed, 1 failed, 2 usage,
// 77 when the only case named does not apply to the driver.
#include "program.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "measurements.h"
#include "suite.h"

extern "C" const npu_driver* npu_driver_get(uint32_t version);  // the host driver, linked in

namespace npu::conformance {

Program& program() {
  static Program instance;
  return instance;
}

namespace {

constexpr int kSkipped = 77;
constexpr int kCaseTimeoutSeconds = 180;

int usage(const char* problem) {
  fprintf(stderr, "%s\nusage: npu_driver_conformance [--driver host|library] [--list] [--measure] [case ...]\n",
          problem);
  return 2;
}

bool load_driver(const std::string& name) {
  npu_driver_get_fn get = npu_driver_get;
  if (name != "host") {
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      fprintf(stderr, "cannot load the driver: %s\n", dlerror());
      return false;
    }
    get = reinterpret_cast<npu_driver_get_fn>(dlsym(library, NPU_DRIVER_GET_SYMBOL));
    if (get == nullptr) {
      fprintf(stderr, "%s exports no %s\n", name.c_str(), NPU_DRIVER_GET_SYMBOL);
      return false;
    }
  }
  program().driver = get(NPU_DRIVER_VERSION);
  if (program().driver == nullptr || program().driver->struct_size < sizeof(npu_driver)) {
    fprintf(stderr, "%s does not provide version %u of the driver table\n", name.c_str(), NPU_DRIVER_VERSION);
    return false;
  }
  return true;
}

int run_here(const Case& chosen) {
  int result = 0;
  try {
    initialize();
    chosen.body();
  } catch (const Skip& skip) {
    printf("skipped: %s\n", skip.what());
    result = kSkipped;
  } catch (const std::exception& failure) {
    printf("FAILED %s: %s\n", chosen.name, failure.what());
    result = 1;
  }
  fflush(stdout);
  // A failed case may have left work that never ends; do not wait for it.
  if (result == 1) _exit(1);
  if (driver().shutdown() != NPU_OK) {
    printf("FAILED %s: shutdown after the case: %s\n", chosen.name, driver().last_error());
    result = 1;
  }
  return result;
}

int run_in_child(const Case& chosen) {
  fflush(stdout);
  pid_t child = fork();
  if (child < 0) return 1;
  if (child == 0) {
    alarm(kCaseTimeoutSeconds);
    execl("/proc/self/exe", program().path.c_str(), "--driver", program().driver_name.c_str(), chosen.name, nullptr);
    _exit(126);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) {
    printf("FAILED %s: ended by signal %d%s\n", chosen.name, WTERMSIG(status),
           WTERMSIG(status) == SIGALRM ? " (timeout)" : "");
    return 1;
  }
  return WEXITSTATUS(status);
}

int run_all(const std::vector<Case>& chosen) {
  int failed = 0, skipped = 0;
  for (const Case& each : chosen) {
    auto begin = std::chrono::steady_clock::now();
    int result = run_in_child(each);
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const char* verdict = result == 0 ? "passed" : result == kSkipped ? "skipped" : "FAILED";
    printf("%-8s %-55s %6.2f s\n", verdict, each.name, seconds);
    failed += result != 0 && result != kSkipped;
    skipped += result == kSkipped;
  }
  printf("%zu cases, %d failed, %d skipped\n", chosen.size(), failed, skipped);
  return failed == 0 ? 0 : 1;
}

int main_program(int argc, char** argv) {
  program().path = argv[0];
  program().driver_name = "host";
  bool list = false, measuring = false;
  const char* peer = nullptr;
  std::vector<std::string> names;
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    if (argument == "--list") {
      list = true;
    } else if (argument == "--measure") {
      measuring = true;
    } else if (argument == "--driver" && i + 1 < argc) {
      program().driver_name = argv[++i];
    } else if (argument == "--peer" && i + 1 < argc) {
      peer = argv[++i];
    } else if (argument.rfind("--", 0) == 0) {
      return usage(("unknown or incomplete option " + argument).c_str());
    } else {
      names.push_back(argument);
    }
  }
  if (list) {
    for (const Case& each : cases()) puts(each.name);
    return 0;
  }
  signal(SIGPIPE, SIG_IGN);
  // Two devices are enough for every case, and little memory keeps the capacity cases quick.
  setenv("NPU_HOST_DEVICE_COUNT", "2", 0);
  setenv("NPU_HOST_MEMORY", "512MiB", 0);
  if (!load_driver(program().driver_name)) return 2;
  if (peer != nullptr) {
    for (const PeerRole& role : peer_roles()) {
      if (strcmp(role.name, peer) == 0) return role.body();
    }
    return usage("unknown peer role");
  }
  if (measuring) return measure();
  std::vector<Case> chosen;
  for (const std::string& name : names) {
    size_t before = chosen.size();
    for (const Case& each : cases()) {
      if (name == each.name) chosen.push_back(each);
    }
    if (chosen.size() == before) return usage(("no case named " + name).c_str());
  }
  if (chosen.size() == 1) return run_here(chosen.front());
  return run_all(chosen.empty() ? cases() : chosen);
}

}  // namespace
}  // namespace npu::conformance

int main(int argc, char** argv) { return npu::conformance::main_program(argc, argv); }
