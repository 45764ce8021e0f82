//! x
pub mod args;
pub mod values;
