// libacl_tdt_channel.so of the simulated CANN: the data channel.
// The wheels name it as needed and take no symbol from it.
