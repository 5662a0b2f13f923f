"""Commands of nsa-onnx that belong to no other part. `nsa_onnx.cli` has the list of all.

A command is a module with two functions: ``add_arguments(parser)`` says what its command line takes, ``run(arguments)``
does the work and gives the exit status. It is imported when it is the one that was asked for, so that no command waits
for what others need.
"""
