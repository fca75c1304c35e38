"""May the new network replace the old one? Rules, what is known of either, and a check for each rule."""
