"""What every room uses: errors, numbers as text, progress, notices, extras, compiled functions."""
