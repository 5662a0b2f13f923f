# Finds onnxruntime's headers (ONNXRUNTIME_INCLUDE_DIR) and Highway's source (HIGHWAY_SOURCE_DIR).
#
# Tried in this order: the path in a CMake or environment variable of that name, what the machine has installed
# (headers only), what lies in NSA_ONNX_DEPS_DIR (an sdist brings it along), and, only with NSA_ONNX_FETCH=1 as such a
# variable, a download into NSA_ONNX_DEPS_DIR by cmake/fetch.py.

set(NSA_ONNX_DEPS_DIR ${CMAKE_SOURCE_DIR}/build/_deps CACHE PATH "Fetched dependencies, shared by all builds")

# Custom ops are compiled against this version of onnxruntime's C API or a newer one.
set(ORT_API_MINIMUM 21)

# ORT_API_VERSION of the headers in `folder`, 0 if there are none.
function(ort_api_version folder result)
  set(version 0)
  if(EXISTS ${folder}/onnxruntime_c_api.h AND EXISTS ${folder}/onnxruntime_cxx_api.h)
    file(STRINGS ${folder}/onnxruntime_c_api.h line REGEX "^#define ORT_API_VERSION [0-9]+" LIMIT_COUNT 1)
    if(line MATCHES "([0-9]+)$")
      set(version ${CMAKE_MATCH_1})
    endif()
  endif()
  set(${result} ${version} PARENT_SCOPE)
endfunction()

foreach(name ONNXRUNTIME_INCLUDE_DIR HIGHWAY_SOURCE_DIR NSA_ONNX_FETCH)
  if(NOT ${name} AND DEFINED ENV{${name}})
    set(${name} $ENV{${name}})
  endif()
endforeach()

set(wanted "")
if(NOT ONNXRUNTIME_INCLUDE_DIR)
  find_path(installed_onnxruntime onnxruntime_cxx_api.h NO_CACHE
    PATH_SUFFIXES onnxruntime onnxruntime/core/session)
  ort_api_version("${installed_onnxruntime}" version)
  if(version LESS ORT_API_MINIMUM)
    list(APPEND wanted onnxruntime)
  else()
    set(ONNXRUNTIME_INCLUDE_DIR ${installed_onnxruntime})
  endif()
endif()
if(NOT HIGHWAY_SOURCE_DIR)
  list(APPEND wanted highway)
endif()

if(wanted)
  set(offline --offline)
  if(NSA_ONNX_FETCH)
    message(STATUS "Looking for ${wanted} in ${NSA_ONNX_DEPS_DIR}, else fetching")
    set(offline "")
  endif()
  execute_process(
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/cmake/fetch.py ${offline} ${NSA_ONNX_DEPS_DIR} ${wanted}
    OUTPUT_VARIABLE lines
    ERROR_VARIABLE error
    RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "${error}")
  endif()
  string(REGEX MATCHALL "[^\n]+" lines "${lines}")
  foreach(line IN LISTS lines)
    string(REGEX MATCH "^([A-Z_]+)=(.+)$" line "${line}")
    set(${CMAKE_MATCH_1} ${CMAKE_MATCH_2})
  endforeach()
endif()

ort_api_version(${ONNXRUNTIME_INCLUDE_DIR} version)
if(version LESS ORT_API_MINIMUM)
  message(FATAL_ERROR "ONNXRUNTIME_INCLUDE_DIR=${ONNXRUNTIME_INCLUDE_DIR} must hold onnxruntime_c_api.h and "
    "onnxruntime_cxx_api.h with ORT_API_VERSION >= ${ORT_API_MINIMUM}, got ${version} (0: not found)")
endif()
message(STATUS "onnxruntime headers: ${ONNXRUNTIME_INCLUDE_DIR} (API ${version})")
if(NOT EXISTS ${HIGHWAY_SOURCE_DIR}/hwy/targets.cc)
  message(FATAL_ERROR "HIGHWAY_SOURCE_DIR=${HIGHWAY_SOURCE_DIR} must be an unpacked source of Google Highway, "
    "and has no hwy/targets.cc")
endif()
message(STATUS "Highway: ${HIGHWAY_SOURCE_DIR}")

# Their code is in the library, so their licences are beside it.
install(FILES ${ONNXRUNTIME_INCLUDE_DIR}/LICENSE DESTINATION nsa_onnx/licenses/onnxruntime OPTIONAL)
install(FILES ${HIGHWAY_SOURCE_DIR}/LICENSE DESTINATION nsa_onnx/licenses/highway OPTIONAL)
