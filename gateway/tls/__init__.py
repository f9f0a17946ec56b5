"""What wraps a stream in TLS."""
