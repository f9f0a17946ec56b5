"""APIs and stores beside the data path."""
