"""The service: the use cases (`engine`), and gRPC over them."""
