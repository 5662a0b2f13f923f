// nsa_ascend_target of launch.h in the build with CANN's compiler.
#include "launch.h"

const char* nsa_ascend_target(void) { return "dav-2201"; }
