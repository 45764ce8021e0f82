//! Where the guest keeps what an outside test may read. The same numbers stand in
//! `guest/defs.s`; a test compares them.

/// Load address of the image.
pub const LOAD: u64 = 0x10_0000;
/// PVH entry point (32-bit).
pub const ENTRY: u64 = LOAD;
/// End of the image and its zeroed memory.
pub const BSS_END: u64 = 0x14_0000;
