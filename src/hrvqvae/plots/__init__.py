"""Pictures: sheets of images, curves, codeword usage."""
