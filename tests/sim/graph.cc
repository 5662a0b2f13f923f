// libgraph.so of the simulated CANN: the graph engine's graphs.
// The wheels name it as needed and take no symbol from it.
