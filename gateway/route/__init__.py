"""Rules: matching, sniffing, compiling to the kernel, relaying."""
