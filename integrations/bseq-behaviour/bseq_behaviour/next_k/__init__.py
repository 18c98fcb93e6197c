"""The next k events as a sequence, decoded by a head over the states of a frozen encoder."""
