"""Pages to look at: one HTML file each, with all pictures inside and no script."""
