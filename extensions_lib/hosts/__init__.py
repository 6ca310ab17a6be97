"""The hosts: each builds a LoadedModel and samples pictures; nothing below knows which it is."""
