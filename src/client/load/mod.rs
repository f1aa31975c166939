//! temp
#![allow(dead_code)]
mod faults;
mod stream;
