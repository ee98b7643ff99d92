"""The cell on a simulated clock: the same control and core as the product's, and what it gives."""
