"""Ready-made laboratories: ``home`` is a house with an uplink; each names its parts for those who drive it."""
