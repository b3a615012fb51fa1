# Libraries of operators that every torch from 2.11 on can load.
set(NPU_CHECK_OP_LIBRARY "${CMAKE_CURRENT_LIST_DIR}/check_op_library.py" CACHE INTERNAL "")

# npu_add_op_library(<target> <source>...)
#
# A module under the rules of the stable torch ABI: only stable shims of torch 2.11 (newer ones as weak symbols), hidden
# visibility, libtorch_cpu.so the only library needed besides the C and C++ runtimes.  The build fails when the result
# breaks one of them.
function(npu_add_op_library target)
  if(NOT EXISTS "${NPU_CHECK_OP_LIBRARY}")
    message(FATAL_ERROR "npu_add_op_library: ${NPU_CHECK_OP_LIBRARY} is missing; reinstall npu-core")
  endif()
  npu_find_torch()
  add_library(${target} MODULE ${ARGN})
  set_target_properties(
    ${target}
    PROPERTIES PREFIX "lib"
               CXX_STANDARD 17
               CXX_STANDARD_REQUIRED ON
               CXX_EXTENSIONS OFF
               CXX_VISIBILITY_PRESET hidden
               VISIBILITY_INLINES_HIDDEN ON
               SKIP_BUILD_RPATH ON
               INSTALL_RPATH "")
  target_compile_definitions(${target} PRIVATE TORCH_TARGET_VERSION=0x020b000000000000)
  target_compile_options(${target} PRIVATE -Wall -Wextra)
  target_link_options(${target} PRIVATE -Wl,--no-undefined -Wl,-z,relro,-z,now)
  target_link_libraries(${target} PRIVATE npu_core::headers npu_torch::stable ${CMAKE_DL_LIBS})
  find_package(Python REQUIRED COMPONENTS Interpreter)
  add_custom_command(
    TARGET ${target} POST_BUILD
    COMMAND "${Python_EXECUTABLE}" "${NPU_CHECK_OP_LIBRARY}" "$<TARGET_FILE:${target}>" "${NPU_TORCH_DIR}/include"
    VERBATIM)
endfunction()

# npu_add_isa_kernels(<target> FAMILIES <family>... ISAS base avx2 avx512 [avx512_bf16] [amx])
#
# Compiles csrc/kernels/<family>.inc once per instruction set, with NPU_ISA defined and that set's flags.  The flags name
# whole levels (-march=...), so a -march in CXXFLAGS cannot leak AVX-512 into the base table.  Only base is built for
# processors other than x86-64.
function(npu_add_isa_kernels target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "FAMILIES;ISAS")
  set(flags_base -march=x86-64 -mtune=generic)
  set(flags_avx2 -march=x86-64-v3 -mtune=generic)
  set(flags_avx512 -march=x86-64-v4 -mtune=generic -mprefer-vector-width=512)
  set(flags_avx512_bf16 ${flags_avx512} -mavx512bf16 -mavx512vnni)
  set(flags_amx ${flags_avx512_bf16} -mamx-tile -mamx-bf16 -mamx-int8)
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    set(arg_ISAS base)
    set(flags_base "")
  endif()
  foreach(family IN LISTS arg_FAMILIES)
    set(text "${CMAKE_CURRENT_SOURCE_DIR}/csrc/kernels/${family}.inc")
    if(NOT EXISTS "${text}")
      message(FATAL_ERROR "npu_add_isa_kernels: family ${family} has no ${text}")
    endif()
    foreach(isa IN LISTS arg_ISAS)
      if(NOT DEFINED flags_${isa})
        message(FATAL_ERROR "npu_add_isa_kernels: no instruction set ${isa}; expected "
                            "base, avx2, avx512, avx512_bf16 or amx")
      endif()
      set(source "${CMAKE_CURRENT_BINARY_DIR}/kernels/${family}.${isa}.cpp")
      file(CONFIGURE OUTPUT "${source}" CONTENT "#define NPU_ISA ${isa}\n#include \"${text}\"\n" @ONLY)
      target_sources(${target} PRIVATE "${source}")
      # -Wno-psabi: vectors cross no call that is not inlined.  -Wno-maybe-uninitialized: GCC's own intrinsics headers.
      set_source_files_properties(
        "${source}" PROPERTIES COMPILE_OPTIONS "-O3;-Wno-psabi;-Wno-maybe-uninitialized;${flags_${isa}}")
    endforeach()
  endforeach()
endfunction()
