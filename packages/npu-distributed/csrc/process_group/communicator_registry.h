// All communicators of this process by (name, device): how ops that communicate find the one a group has made.
#pragma once

#include <cstddef>
#include <string>

namespace npu::distributed {

class Communicator;

/// Notes the name that the communicator of group number `group`, which `description` describes, has or will have; it
/// takes the place of the group's earlier one.  With `only_if_free` does nothing when another living group has the
/// name, and returns the description of that group.
std::string HoldName(size_t group, const std::string& name, const std::string& description, bool only_if_free = false);
/// The group has ended.
void ReleaseName(size_t group) noexcept;

/// Adds a communicator.  Throws c10::Error when the name is taken on that device.
void RegisterCommunicator(const std::string& name, int device, Communicator* communicator);
void UnregisterCommunicator(const std::string& name, int device) noexcept;
/// The communicator, or nullptr.
Communicator* FindCommunicator(const std::string& name, int device);

}  // namespace npu::distributed
