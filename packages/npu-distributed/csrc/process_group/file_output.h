// Files of diagnosis: whole or not there, and never a reason to stop a training.
#pragma once

#include <string>

namespace npu::distributed {

/// Writes beside `path` and renames, so that a reader never sees half a file.  Makes the folder if needed.  False,
/// after a warning on stderr, when it cannot be written; the warning is given once per folder.
bool WriteWholeFile(const std::string& path, const std::string& text) noexcept;

/// The same for a line at the end of a file, without the rename.
bool AppendLine(const std::string& path, const std::string& line) noexcept;

}  // namespace npu::distributed
