//! What people read: tables, sentences, colours. Pure functions from facts to text.

pub mod columns;
pub mod cpu;
pub mod demo;
pub mod doubt;
pub mod failure;
pub mod guest;
pub mod hosts;
pub mod live;
pub mod outcome;
pub mod progress;
pub mod report;
pub mod style;
pub mod table;
pub mod units;
