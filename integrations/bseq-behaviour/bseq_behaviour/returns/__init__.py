"""When a user comes back: an encoder of visits, trained as a discrete-time hazard."""
