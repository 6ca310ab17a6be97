"""Tools on files: inspect (and, beside it, convert, merge, resize, extract, bake)."""
