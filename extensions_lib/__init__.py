"""Crucible: fine-tuned networks for Stable Diffusion, applied, trained and taken apart."""

__version__ = "0.1.0"
