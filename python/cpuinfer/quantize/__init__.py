"""Choosing the numbers that stand for a model's weights, and writing them down."""
