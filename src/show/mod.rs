//! What people read: tables, sentences, colours.
