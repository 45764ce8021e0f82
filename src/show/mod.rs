//! What people read: tables, sentences, colours. Pure functions from facts to text.

pub mod failure;
pub mod guest;
pub mod live;
pub mod style;
pub mod table;
pub mod units;
