"""Quantinel: finds, removes and measures backdoors that wake when a network is quantized."""
