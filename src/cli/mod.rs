//! The guest API client and host side, wired up in the commands.
