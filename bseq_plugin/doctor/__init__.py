"""The check of a machine, which `bseq doctor` runs: versions, clashes of wheels, what the processor can do."""
