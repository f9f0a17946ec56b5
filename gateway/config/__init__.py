"""JSON with comments to typed options; errors that name file, line and path."""
