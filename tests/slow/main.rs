//! The tests that take longest, in one program: they wait more than they compute, so they wait side by side.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]
#![allow(clippy::print_stderr, reason = "a test that lacks a program says so")]

#[path = "../common/daemon.rs"]
mod daemon;
#[path = "../common/network.rs"]
mod network;
#[path = "../common/programs.rs"]
mod programs;
#[path = "../common/tool.rs"]
mod tool;

mod compare;
mod courses;
#[cfg(target_os = "linux")]
mod exit_codes;
#[cfg(target_os = "linux")]
mod fleet;
#[cfg(target_os = "linux")]
mod namespaces;
#[cfg(target_os = "linux")]
mod states;
