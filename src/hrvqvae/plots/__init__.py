"""What a person would rather see than read: sheets of images, curves, codeword usage."""
