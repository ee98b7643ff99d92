"""What ``multispin reproduce`` computes: one file for each family of figures."""
