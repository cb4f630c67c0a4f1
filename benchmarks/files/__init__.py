"""Compare image files by bytes and error: our codes, other formats, and a linear transform."""
