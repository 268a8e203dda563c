"""A worker process: the Python shell around the Rust engine."""
