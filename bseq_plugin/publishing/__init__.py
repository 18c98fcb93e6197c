"""Publishing makes a version of the store from a trained run, or a delta between two builds."""
