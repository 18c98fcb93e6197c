"""Units of each category in the week that follows, summed over the rates of the users."""
