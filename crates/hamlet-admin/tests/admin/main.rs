//! The admin API as an operator's tools meet it: over a unix socket, and over TCP for health.

mod fake;
mod health;
mod socket;
