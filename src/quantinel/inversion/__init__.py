"""What triggers a compressed network may obey: known kinds to try, and a search by gradient for others.

With what both stand on: rounding errors and their control copies, answers under other weights, time budgets.

Detectors hold what is found against control copies; `quantinel.defenses.invariant` stamps calibration images with it.
"""
