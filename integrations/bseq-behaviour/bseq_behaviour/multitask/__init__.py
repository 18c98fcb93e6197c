"""Several futures learned together, with the encoder trained on."""
