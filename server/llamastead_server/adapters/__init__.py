"""One module per outside thing: each implements a port of the domain with its library."""
