"""The demo checkpoint: its picture world, its training, and the judge of its pictures."""
