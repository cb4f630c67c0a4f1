"""Systems, and settings of one system, side by side: same data, order, budget and test images."""
