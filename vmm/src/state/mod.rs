//! Saved state: a header that can be read on its own, and one frozen tree of plain data for each
//! version. Bytes from outside are untrusted.

pub mod v1;
