"""How bytes reach a peer: dialer, listener, TCP, UDP and what rides on them."""
