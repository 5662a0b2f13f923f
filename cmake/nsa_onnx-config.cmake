# find_package(nsa_onnx) makes the target nsa_onnx::nsa_onnx: the library, and nsa_onnx.h on the include path.
# $<TARGET_FILE:nsa_onnx::nsa_onnx> is the library's path, for RegisterCustomOpsLibrary.
if(NOT TARGET nsa_onnx::nsa_onnx)
  get_filename_component(nsa_onnx_package "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
  if(NOT EXISTS "${nsa_onnx_package}/libnsa_onnx_ort.so")
    set(nsa_onnx_NOT_FOUND_MESSAGE "${nsa_onnx_package}/libnsa_onnx_ort.so is missing: nsa-onnx doctor says why")
    set(nsa_onnx_FOUND FALSE)
    unset(nsa_onnx_package)
    return()
  endif()
  add_library(nsa_onnx::nsa_onnx SHARED IMPORTED)
  set_target_properties(nsa_onnx::nsa_onnx PROPERTIES
    IMPORTED_LOCATION "${nsa_onnx_package}/libnsa_onnx_ort.so"
    IMPORTED_SONAME libnsa_onnx_ort.so
    INTERFACE_INCLUDE_DIRECTORIES "${nsa_onnx_package}/include")
  unset(nsa_onnx_package)
endif()
