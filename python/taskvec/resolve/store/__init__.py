"""Object stores and web servers: an address becomes files that are read by ranges."""
