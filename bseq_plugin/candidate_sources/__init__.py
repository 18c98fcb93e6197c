"""Candidate sources that come with bseq: item neighbours, transition graph, popularity."""
