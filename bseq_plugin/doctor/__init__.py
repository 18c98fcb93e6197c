"""The doctor checks a machine, its packages and its processes, as `bseq doctor` runs it."""
