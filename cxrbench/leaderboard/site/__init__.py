"""Tables to a web site that opens from disk: no server, no network, no torch."""
