#include "process_group/socket_address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>

#include <cstdlib>
#include <sstream>
#include <vector>

#include "transport/comm_error.h"

namespace npu::distributed {
namespace {

struct Interface {
  std::string name;
  std::string ip;
};

/// Interfaces that are up, one entry per address.
std::vector<Interface> Interfaces() {
  std::vector<Interface> found;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return found;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || (entry->ifa_flags & IFF_UP) == 0) continue;
    char text[INET6_ADDRSTRLEN] = "";
    if (entry->ifa_addr->sa_family == AF_INET) {
      inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(entry->ifa_addr)->sin_addr, text, sizeof text);
    } else if (entry->ifa_addr->sa_family == AF_INET6) {
      inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr)->sin6_addr, text, sizeof text);
    } else {
      continue;
    }
    found.push_back({entry->ifa_name, text});
  }
  freeifaddrs(list);
  return found;
}

std::string Value(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

[[noreturn]] void ThrowUnknown(const char* variable, const std::string& value, const char* expected) {
  std::string known;
  for (const Interface& interface : Interfaces()) {
    known += (known.empty() ? "" : ", ") + interface.name + " (" + interface.ip + ")";
  }
  throw CommError(NPU_ERROR_INVALID_ARGUMENT, std::string(variable) + " should name " + expected +
                                                  " of this machine, but got \"" + value + "\"; there are " + known);
}

/// The first interface that fits "eth,bond" (beginnings of names), "=eth0" (whole names) or either behind "^" (all but
/// those).
std::string PickInterface(const std::string& pattern) {
  std::string rest = pattern;
  const bool excluded = rest.starts_with('^');
  if (excluded) rest.erase(0, 1);
  const bool whole = rest.starts_with('=');
  if (whole) rest.erase(0, 1);
  for (const Interface& interface : Interfaces()) {
    bool named = false;
    std::istringstream names(rest);
    for (std::string name; std::getline(names, name, ',');) {
      named = named || (!name.empty() && (whole ? interface.name == name : interface.name.starts_with(name)));
    }
    // "All but those" should not lead to an address that no other machine can reach.
    if (named != excluded && !(excluded && interface.name == "lo")) return interface.name;
  }
  ThrowUnknown("HCCL_SOCKET_IFNAME", pattern, "an interface");
}

}  // namespace

SocketAddress SocketAddress::OfEnvironment() {
  if (const std::string ip = Value("HCCL_IF_IP"); !ip.empty()) {
    for (const Interface& interface : Interfaces()) {
      if (interface.ip == ip) return {"", ip};
    }
    ThrowUnknown("HCCL_IF_IP", ip, "an address");
  }
  if (const std::string pattern = Value("HCCL_SOCKET_IFNAME"); !pattern.empty()) return {PickInterface(pattern), ""};
  if (const std::string name = Value("GLOO_SOCKET_IFNAME"); !name.empty()) {
    return {name.substr(0, name.find(',')), ""};
  }
  return {};
}

}  // namespace npu::distributed
