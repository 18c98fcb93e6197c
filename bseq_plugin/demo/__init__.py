"""The whole job on real purchases, which `bseq demo` runs."""
