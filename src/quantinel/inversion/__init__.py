"""What triggers a compressed network may obey: known kinds to try, and a search by gradient for others.

Detectors hold what is found against control copies; `quantinel.defenses.invariant` stamps calibration images with it.
"""
