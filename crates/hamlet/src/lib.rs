//! The Hamlet program: command line, configuration, and the one place where the parts meet.
//!
//! A library only so that tests and `xtask` can start agents in process; it promises no API.

pub mod agent;
mod audit;
pub mod cli;
pub mod config;
pub mod demo;
mod doctor;
mod hex;
