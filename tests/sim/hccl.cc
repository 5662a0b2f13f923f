// libhccl.so of the simulated CANN: collective communication.
// The wheels name it as needed and take no symbol from it.
