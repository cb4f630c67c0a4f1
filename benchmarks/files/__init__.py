"""Image files side by side: bytes against error, of our codes, of other formats, and of a linear
transform.
"""
