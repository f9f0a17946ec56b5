"""Network-namespace laboratory for tests, demo and benchmarks; a running gateway never imports it."""
