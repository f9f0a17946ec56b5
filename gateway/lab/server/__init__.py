"""What an internet host of the lab runs: servers that tell every client, and the record file, what they saw."""
