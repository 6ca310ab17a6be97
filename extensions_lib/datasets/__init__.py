"""Sets of pictures with captions: finding and opening the pictures, captions, rules, filters.

Nothing here knows a model, a host or a page.
"""
