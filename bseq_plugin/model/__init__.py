"""Tables, encoder, readout and loss, composed into TorchRec modules."""
