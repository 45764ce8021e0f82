//! All places that a move passes in which nothing goes wrong.
pub const POINTS: &[&str] = &[];
