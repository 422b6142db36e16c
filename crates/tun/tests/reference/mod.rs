//! A slow reference for the packet code, written from the RFCs with one byte after the other, and checks that compare the two on any
//! bytes. The fuzz targets use the same checks.

pub mod build;
pub mod inbound;
pub mod merge;
pub mod outbound;
pub mod slow;
