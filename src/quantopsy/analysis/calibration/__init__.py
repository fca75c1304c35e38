"""Calibration sets: are there enough images, and the right ones?"""
