"""Measurements, run by `make bench`: each module has a `measure()` that yields rows.

A number is only worth something beside another one from the same machine and minute, so every row
names what it is compared with, and the bound that it has to keep.
"""
