"""The benchmark: typed rows, one per cell, and the tables made from them."""
