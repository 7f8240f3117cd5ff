"""Saved Keras models beside their torch ports: reading configs, the order of draws, replay, weights."""
