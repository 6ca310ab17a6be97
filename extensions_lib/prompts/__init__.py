"""What a prompt says: network tags, attention, editing over the steps, parts, tokens, infotext.

Standard library only, and no text makes anything here raise.
"""
