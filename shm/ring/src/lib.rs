//! The memory that the processes of Tidegate share.
