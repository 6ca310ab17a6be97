"""REST for programs: the routes that existing clients know, on any host's server."""
