//! The guest's init and tools, and the integration tests that run in a guest.

pub mod config;
pub mod integration;
mod sys;
pub mod tool;
