"""Mixed precision: which bit-width every weight and activation gets under limits on what it costs."""
