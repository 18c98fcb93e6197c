"""What a head is, how a plugin brings one, and how one is chosen by kind and name."""
