// libacl_op_compiler.so of the simulated CANN: single operators, compiled and run by name.
#include "not_simulated.h"

NOT_SIMULATED(aclopCompileAndExecute)
NOT_SIMULATED_NULL(aclopCreateAttr)
NOT_SIMULATED(aclopDestroyAttr)
NOT_SIMULATED(aclopSetAttrBool)
NOT_SIMULATED(aclopSetAttrDataType)
NOT_SIMULATED(aclopSetAttrFloat)
NOT_SIMULATED(aclopSetAttrInt)
NOT_SIMULATED(aclopSetAttrListBool)
NOT_SIMULATED(aclopSetAttrListFloat)
NOT_SIMULATED(aclopSetAttrListInt)
NOT_SIMULATED(aclopSetAttrListListInt)
NOT_SIMULATED(aclopSetAttrString)
