"""The public face: thin gRPC servicers over the domain."""
