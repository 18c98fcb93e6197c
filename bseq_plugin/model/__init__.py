"""Tables + encoder + readout + loss, composed into TorchRec modules."""
