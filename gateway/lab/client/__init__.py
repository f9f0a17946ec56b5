"""Clients that the lab's hosts run where no ready program will do: a QUIC client, a UDP client with a fixed port."""
