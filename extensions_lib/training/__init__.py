"""Training on the loaded checkpoint: what is learnt, from what, by which steps."""
