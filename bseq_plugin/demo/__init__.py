"""The demo does the whole job on real purchases, as `bseq demo` runs it."""
