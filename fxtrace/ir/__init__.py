"""Plain data that every room reads: no torch, no grpc."""
