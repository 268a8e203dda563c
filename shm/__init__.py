"""The memory that Tidegate's processes share: segments, rings, statistics."""
