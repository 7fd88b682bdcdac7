"""`make bench`: what Holdover costs, measured beside the barest thing that does the same.

Every figure stands beside its rival's of the same run: the two take turns, so that whatever else
the machine does meets both alike. results.md explains each comparison; results.json has every
single measurement.
"""
