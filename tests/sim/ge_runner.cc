// libge_runner.so of the simulated CANN: the graph engine.
// The wheels name it as needed and take no symbol from it.
