# find_package(npu_core CONFIG): what a plugin needs to build.
#
#   npu_core::headers             include directory of npu/*.h
#   npu_find_torch()              target npu_torch::stable, without starting torch
#   npu_add_op_library(...)       one shared library under the rules of the stable torch ABI
#   npu_add_isa_kernels(...)      a kernel text compiled once per instruction set
#
# The same file serves the source tree (packages/npu-core/cmake) and the installed package
# (npu_core/share/cmake/npu_core).

foreach(_npu_core_root "${CMAKE_CURRENT_LIST_DIR}/.." "${CMAKE_CURRENT_LIST_DIR}/../../..")
  if(EXISTS "${_npu_core_root}/include/npu/runtime.h")
    get_filename_component(npu_core_INCLUDE_DIR "${_npu_core_root}/include" ABSOLUTE)
    break()
  endif()
endforeach()
unset(_npu_core_root)
if(NOT npu_core_INCLUDE_DIR)
  set(npu_core_FOUND FALSE)
  set(npu_core_NOT_FOUND_MESSAGE "no include/npu/runtime.h beside ${CMAKE_CURRENT_LIST_DIR}; reinstall npu-core")
  return()
endif()

if(NOT TARGET npu_core::headers)
  add_library(npu_core::headers INTERFACE IMPORTED)
  target_include_directories(npu_core::headers INTERFACE "${npu_core_INCLUDE_DIR}")
endif()

include("${CMAKE_CURRENT_LIST_DIR}/npu_find_torch.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/npu_op_library.cmake")
