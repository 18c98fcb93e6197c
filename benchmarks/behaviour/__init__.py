"""What event types, times, sessions and several interests are worth."""
