"""How good the shipped recipes are, and which settings make them so."""
