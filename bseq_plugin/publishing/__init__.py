"""From a trained run to a version of the store: what may be published, its files, its index, deltas between builds."""
