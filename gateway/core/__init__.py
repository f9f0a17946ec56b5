"""Words that every package uses; imports nothing else of ours."""
