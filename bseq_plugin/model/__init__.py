"""The model composes tables, encoder, readout and loss into TorchRec modules."""
