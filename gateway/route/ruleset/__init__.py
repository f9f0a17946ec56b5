"""Rule sets: inline, source JSON, binary .srs."""
