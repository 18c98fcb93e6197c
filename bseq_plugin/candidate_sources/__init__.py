"""Candidate sources find items beside the search by interest: neighbours, transitions, popularity."""
