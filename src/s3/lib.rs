//! The s3 room.
