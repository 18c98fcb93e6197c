"""Event readers: ``read_events`` asks the plugins, the built-in ones last."""
