"""A study of a calibration set in words, on the terminal and as a page."""
