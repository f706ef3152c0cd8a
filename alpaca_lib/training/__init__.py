"""Stages 03 and 04: examples -> a trained model, on one process or many."""
