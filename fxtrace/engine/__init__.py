"""What fxtrace does, apart from how it is asked: see `fxtrace.engine.session` for the one line."""
