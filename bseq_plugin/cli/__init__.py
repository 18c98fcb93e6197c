"""The command line turns arguments into calls of the library and prints what they return."""
