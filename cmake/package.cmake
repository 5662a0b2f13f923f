# What C and C++ users get beside the library, in the Python package: nsa_onnx.h, the CMake package, pkg-config's file.
# Each finds the others by its own place, so that the folder may be moved (docs/cpp.md).

include(CMakePackageConfigHelpers)
file(STRINGS pyproject.toml version REGEX "^version = \"[^\"]+\"$" LIMIT_COUNT 1)
string(REGEX REPLACE "^version = \"(.+)\"$" "\\1" version "${version}")

# nsa_onnx.h is the C interface in one file: c_api.h, and what each operator adds to it.
file(GLOB interface CONFIGURE_DEPENDS ort_ext/operators/*/c_api.h)
list(PREPEND interface ${CMAKE_SOURCE_DIR}/ort_ext/c_api/c_api.h)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${interface})
set(header "// Made of the files ort_ext/**/c_api.h of nsa_onnx ${version} by cmake/package.cmake.\n")
foreach(part IN LISTS interface)
  file(READ ${part} given)
  string(REPLACE "#include \"c_api/c_api.h\"\n\n" "" text "${given}")
  # An include that stays would be of a file that users do not have.
  if(text MATCHES "#include \"" OR (part MATCHES "/operators/" AND text STREQUAL given))
    message(FATAL_ERROR "${part} must include \"c_api/c_api.h\", nothing else of ours, and have an empty line behind it")
  endif()
  string(APPEND header "\n${text}")
endforeach()
file(CONFIGURE OUTPUT package/nsa_onnx.h CONTENT "${header}" @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/package/nsa_onnx.h DESTINATION nsa_onnx/include)

write_basic_package_version_file(package/nsa_onnx-config-version.cmake
  VERSION ${version} COMPATIBILITY SameMinorVersion)
install(FILES cmake/nsa_onnx-config.cmake ${CMAKE_BINARY_DIR}/package/nsa_onnx-config-version.cmake
  DESTINATION nsa_onnx/cmake)

configure_file(cmake/nsa_onnx.pc.in package/nsa_onnx.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/package/nsa_onnx.pc DESTINATION nsa_onnx/pkgconfig)
