# npu_find_torch(): the installed torch, as target npu_torch::stable (headers, libtorch_cpu.so).
#
# The interpreter is asked where the package lies but does not import it (that costs seconds).  Set NPU_TORCH_DIR to
# another .../site-packages/torch to build against that one.
function(npu_find_torch)
  if(TARGET npu_torch::stable)
    return()
  endif()
  if(NOT NPU_TORCH_DIR)
    find_package(Python REQUIRED COMPONENTS Interpreter)
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c
              "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
      OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
    if(NOT found)
      message(FATAL_ERROR "torch is not installed for ${Python_EXECUTABLE}: install it, or set NPU_TORCH_DIR to the "
                          "torch folder of another site-packages")
    endif()
    set(NPU_TORCH_DIR "${found}" CACHE PATH "site-packages/torch to build against" FORCE)
  endif()

  set(library "${NPU_TORCH_DIR}/lib/libtorch_cpu.so")
  set(version_header "${NPU_TORCH_DIR}/include/torch/headeronly/version.h")
  foreach(file IN ITEMS "${library}" "${version_header}")
    if(NOT EXISTS "${file}")
      message(FATAL_ERROR "NPU_TORCH_DIR=${NPU_TORCH_DIR} has no ${file}: expected the torch folder of a "
                          "site-packages, version 2.11 or later")
    endif()
  endforeach()
  foreach(part MAJOR MINOR PATCH)
    file(STRINGS "${version_header}" line REGEX "^#define TORCH_VERSION_${part} ")
    string(REGEX MATCH "[0-9]+$" ${part} "${line}")
  endforeach()
  set(version "${MAJOR}.${MINOR}.${PATCH}")
  if(version VERSION_LESS 2.11)
    message(FATAL_ERROR "torch ${version} in ${NPU_TORCH_DIR} is too old: the op wheels need the stable ABI of 2.11")
  endif()
  message(STATUS "torch ${version} at ${NPU_TORCH_DIR}")

  add_library(npu_torch::stable INTERFACE IMPORTED GLOBAL)
  target_include_directories(npu_torch::stable SYSTEM INTERFACE "${NPU_TORCH_DIR}/include")
  # torch's libraries are loaded RTLD_LOCAL, so this one has to be named as needed.  Its soname is already loaded by
  # `import torch` whenever an op library is, hence no rpath.
  target_link_libraries(npu_torch::stable INTERFACE "${library}")
endfunction()
