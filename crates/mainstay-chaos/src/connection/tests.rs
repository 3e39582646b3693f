//! The machine in virtual time.

mod bytes;
mod cuts;
mod ends;
mod handshake;
mod play;
mod rules;
