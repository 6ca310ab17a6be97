"""The only room that opens network, checkpoint and embedding files.

`safe` reads and writes tensors, `keys` and `recognise` understand names and shapes (without torch),
`networks` makes adapters of them (with torch), `hashes` and `cache` remember what files are.
"""
