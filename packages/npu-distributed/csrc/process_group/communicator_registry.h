// All communicators of this process by (name, device): how ops that communicate find the one a group has made.
#pragma once

#include <string>

namespace npu::distributed {

class Communicator;

/// Adds a communicator.  Throws c10::Error when the name is taken on that device.
void RegisterCommunicator(const std::string& name, int device, Communicator* communicator);
void UnregisterCommunicator(const std::string& name, int device) noexcept;
/// The communicator, or nullptr.
Communicator* FindCommunicator(const std::string& name, int device);

}  // namespace npu::distributed
